"""draft_worker/ngram_index.py: looking up a sequence's own repeats."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from draft_worker.ngram_index import NgramIndex


def make_index(*token_ids: int) -> NgramIndex:
    return NgramIndex(token_ids, min_n=2, max_n=4)


def test_a_repeat_is_continued_as_it_was() -> None:
    """After 1 2 came 3 4 5; after 1 2 again, that is the guess."""
    assert make_index(1, 2, 3, 4, 5, 9, 1, 2).continuation(3) == (3, 4, 5)


def test_the_longest_match_wins_over_a_later_one() -> None:
    """Three matching tokens say more than two, though the two are more recent."""
    index = make_index(1, 2, 3, 7, 8, 2, 3, 5, 9, 1, 2, 3)
    assert index.continuation(2) == (7, 8)


def test_of_equal_matches_the_latest_wins() -> None:
    """A sequence tends to repeat what it did last."""
    assert make_index(1, 2, 3, 9, 1, 2, 4, 8, 1, 2).continuation(1) == (4,)


def test_a_period_is_repeated_beyond_the_end() -> None:
    """A match that reaches the end is continued from its own copy."""
    assert make_index(1, 2, 3, 1, 2, 3).continuation(7) == (1, 2, 3, 1, 2, 3, 1)


@pytest.mark.parametrize("tokens", [(), (1,), (1, 2), (1, 2, 3, 4)], ids=len)
def test_without_a_repeat_there_is_no_guess(tokens: tuple[int, ...]) -> None:
    """Nothing is invented; a suffix never matches itself."""
    assert make_index(*tokens).continuation(4) == ()


@given(st.lists(st.integers(0, 3), max_size=40), st.integers(1, 12))
def test_the_index_agrees_with_a_search_of_the_whole_sequence(tokens: list[int], num: int) -> None:
    """Incremental or not, it is the longest, then latest, earlier occurrence."""
    index = NgramIndex((), min_n=2, max_n=4)
    for token in tokens:
        index.extend([token])
    assert index.continuation(num) == _search(tokens, num)


def _search(tokens: list[int], num: int) -> tuple[int, ...]:
    for size in (4, 3, 2):
        for end in range(len(tokens) - 1, size - 1, -1):
            if tokens[end - size : end] == tokens[-size:]:
                period = tokens[end:]
                return tuple((period * num)[:num])
    return ()
