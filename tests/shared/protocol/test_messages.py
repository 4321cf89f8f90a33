"""Inbox batches: msgpack and back, and bytes that are none."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.common.errors import PeerError
from shared.protocol.messages import (
    Batch,
    CancelNotice,
    DraftAccepted,
    DraftClosed,
    DraftPath,
    DraftRequest,
    Message,
    Verdict,
    decode_batch,
    encode_batch,
)
from shared.protocol.sampling import SamplingParams

ids = st.text(max_size=20)
lengths = st.integers(0, 2**40)
token_ids = st.lists(st.integers(-1, 2**40), max_size=20).map(tuple)
sampling = st.builds(
    SamplingParams,
    seed=st.integers(0, 2**64 - 1),
    temperature=st.floats(0, 2),
    top_k=st.integers(0, 9),
    logit_bias=st.lists(st.tuples(st.integers(0, 9), st.floats(-100, 100))).map(tuple),
    stop_token_ids=token_ids,
)
messages = st.one_of(
    st.builds(DraftRequest, ids, ids, lengths, ids, lengths, lengths, token_ids, sampling),
    st.builds(DraftAccepted, ids, ids),
    st.builds(DraftPath, ids, lengths, token_ids),
    st.builds(Verdict, ids, lengths, token_ids),
    st.builds(DraftClosed, ids),
    st.builds(CancelNotice, ids),
)


@given(ids, st.lists(messages, max_size=5).map(tuple))
def test_round_trip(sender: str, content: tuple[Message, ...]) -> None:
    """Every kind of message, in order, with its sender."""
    assert decode_batch(encode_batch(sender, content)) == Batch(1, sender, content)


@given(st.binary(max_size=200))
def test_garbage_is_a_peer_error(data: bytes) -> None:
    """No bytes raise anything else."""
    with pytest.raises(PeerError):
        decode_batch(data)


@given(st.lists(messages, max_size=3).map(tuple), st.data())
def test_a_damaged_batch_is_a_batch_or_a_peer_error(
    content: tuple[Message, ...], data: st.DataObject
) -> None:
    """One byte overwritten, or the end cut off."""
    encoded = bytearray(encode_batch("draft:d", content))
    position = data.draw(st.integers(0, len(encoded) - 1))
    encoded[position] = data.draw(st.integers(0, 255))
    end = data.draw(st.integers(position, len(encoded)))
    try:
        decode_batch(bytes(encoded[:end]))
    except PeerError:
        return


@pytest.mark.parametrize(
    "data",
    [
        msgspec.msgpack.encode([2, "x", []]),
        msgspec.msgpack.encode([1, "x", [["unknown", 1]]]),
        msgspec.msgpack.encode({"version": 1}),
        b"\x91" * 100_000,
        b"",
    ],
    ids=["other version", "unknown message", "map", "deep", "empty"],
)
def test_what_is_no_batch_of_ours(data: bytes) -> None:
    """Refused as a whole."""
    with pytest.raises(PeerError):
        decode_batch(data)
