"""Who is alive."""

import pytest

from shared.bus.connection import Bus
from shared.bus.fleet import Fleet
from shared.protocol.limits import LEASE_S
from tests.bus_worker import status

pytestmark = pytest.mark.server


async def test_workers_are_those_with_a_heartbeat(bus: Bus) -> None:
    """Sorted by id; one that retires or stops beating is gone."""
    fleet = Fleet(bus)
    assert await fleet.workers() == []
    for name in ("target:b", "draft:a", "target:c"):
        await fleet.beat(status(name))
    assert [worker.worker_id for worker in await fleet.workers()] == [
        "draft:a",
        "target:b",
        "target:c",
    ]
    await fleet.retire("target:b")
    await bus.call("PEXPIRE", bus.keys.heartbeat("draft:a"), 0)
    assert await fleet.workers() == [status("target:c")]
    assert await bus.call("SMEMBERS", bus.keys.workers) == [b"target:c"]
    await fleet.beat(status("draft:a"))
    assert len(await fleet.workers()) == 2


async def test_a_heartbeat_lasts_one_lease(bus: Bus) -> None:
    """So a worker that makes no progress loses its jobs after LEASE_S."""
    await Fleet(bus).beat(status("target:a"))
    ttl_ms = await bus.call("PTTL", bus.keys.heartbeat("target:a"))
    assert LEASE_S * 1_000 - 500 < ttl_ms <= LEASE_S * 1_000


async def test_an_unreadable_heartbeat_is_left_out(bus: Bus) -> None:
    """Somebody else's bytes do not hide the others."""
    fleet = Fleet(bus)
    await fleet.beat(status("target:a"))
    await bus.call("SET", bus.keys.heartbeat("target:x"), b"\xff{")
    await bus.call("SADD", bus.keys.workers, "target:x")
    assert await fleet.workers() == [status("target:a")]
