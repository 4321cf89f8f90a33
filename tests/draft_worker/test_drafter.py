"""draft_worker/drafter.py: reading a verdict against what is known."""

import pytest

from draft_worker.drafter import unseen
from tests.draft_worker.builders import make_verdict

KNOWN = [10, 11, 12, 13, 99]  # the last one is a guess


@pytest.mark.parametrize(
    ("base_len", "token_ids", "expected"),
    [
        (4, (14, 15), (14, 15)),
        (3, (13, 14), (14,)),
        (2, (12, 13), ()),
        (0, (10,), ()),
        (4, (), ()),
        (5, (15,), None),
        (3, (77, 14), None),
        (-1, (9, 10), None),
    ],
    ids=["next", "overlap", "duplicate", "old", "empty", "gap", "disagrees", "negative"],
)
def test_only_what_is_new_counts(
    base_len: int, token_ids: tuple[int, ...], expected: tuple[int, ...] | None
) -> None:
    """Old news is nothing, a gap or another story cannot be followed."""
    assert unseen(KNOWN, 4, make_verdict(base_len, *token_ids)) == expected
