"""Log records: flat fields and back, and bytes that are none."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.common.errors import PeerError
from shared.protocol.records import (
    Done,
    Failed,
    Finished,
    FinishReason,
    Record,
    SpeculationStats,
    Tokens,
    Usage,
    from_fields,
    to_fields,
)

counts = st.integers(0, 2**53)
choices = st.integers(0, 7)
reasons = st.sampled_from(FinishReason)
texts = st.text(st.characters(codec="utf-8"))
records = st.one_of(
    st.builds(Tokens, choices, counts, st.lists(st.integers(0, 2**31)).map(tuple), texts),
    st.builds(Finished, choices, texts, reasons),
    st.builds(
        Done,
        choices,
        texts,
        st.lists(reasons, min_size=1).map(tuple),
        st.integers(0, 2**64 - 1),
        st.builds(Usage, counts, counts, counts),
        st.builds(SpeculationStats, counts, counts, counts, st.lists(counts).map(tuple)),
    ),
    st.builds(Failed, texts, texts, st.none() | texts, st.integers(400, 599)),
)


@given(records)
def test_round_trip(record: Record) -> None:
    """What is written is read back, whatever text it holds."""
    fields = to_fields(record)
    assert from_fields({name.encode(): value.encode() for name, value in fields.items()}) == record
    assert next(iter(fields)) == "v"


@given(st.dictionaries(st.binary(max_size=9), st.binary(max_size=9)))
def test_garbage_is_a_peer_error(fields: dict[bytes, bytes]) -> None:
    """No fields raise anything else."""
    with pytest.raises(PeerError):
        from_fields(fields)


@given(records, st.data())
def test_a_damaged_record_is_itself_or_a_peer_error(record: Record, data: st.DataObject) -> None:
    """One field lost or overwritten."""
    fields = {name.encode(): value.encode() for name, value in to_fields(record).items()}
    name = data.draw(st.sampled_from(sorted(fields)))
    damage = data.draw(st.none() | st.binary(max_size=9))
    fields = {key: value for key, value in fields.items() if key != name}
    if damage is not None:
        fields[name] = damage
    try:
        from_fields(fields)
    except PeerError:
        return


def test_another_version_is_named() -> None:
    """A reader says what it cannot read."""
    with pytest.raises(PeerError, match="version 2; this process speaks 1"):
        from_fields({b"v": b"2", b"ev": b"done"})


def test_rates_of_nothing() -> None:
    """Nothing drafted: rate 0, and a round is worth its one token."""
    assert SpeculationStats().acceptance_rate == 0.0
    assert SpeculationStats().mean_acceptance_length == 1.0
    stats = SpeculationStats(num_rounds=4, num_draft_tokens=16, num_accepted_tokens=12)
    assert (stats.acceptance_rate, stats.mean_acceptance_length) == (0.75, 4.0)
