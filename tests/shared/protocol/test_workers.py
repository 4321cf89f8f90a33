"""Heartbeats: JSON and back, and bytes that are none."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.common.errors import PeerError
from shared.protocol.workers import SpeculationTotals, WorkerStatus, decode_status
from tests.bus_worker import status


def test_round_trip() -> None:
    """A short line when idle; everything when busy."""
    busy = msgspec.structs.replace(
        status("target:a"),
        is_draining=True,
        kv_cache_usage=0.5,
        speculation=SpeculationTotals(1, 4, 2, (1, 1, 0, 0)),
    )
    for beat in (status("target:a"), busy):
        assert decode_status(msgspec.json.encode(beat)) == beat
    assert isinstance(busy, WorkerStatus)
    assert b"num_running" not in msgspec.json.encode(status("target:a"))


@given(st.binary(max_size=100))
def test_garbage_is_a_peer_error(data: bytes) -> None:
    """No bytes raise anything else."""
    with pytest.raises(PeerError):
        decode_status(data)
