"""draft_worker/confidence.py: margins become probabilities."""

import math

import pytest

from draft_worker.confidence import Confidence, Guess


def guess(margin: float, *token_ids: int) -> Guess:
    return Guess(token_ids or (1, 2, 3), margin, 0.5)


def test_a_wide_margin_starts_out_more_trusted_than_a_near_tie() -> None:
    """Before any verdict the odds grow with the margin, inside 0 to 1."""
    odds = [Confidence().odds(margin / 4) for margin in range(40)]
    assert odds == sorted(odds)
    assert 0.3 < odds[0] < odds[-1] <= 1.0


@pytest.mark.parametrize("margin", [math.inf, math.nan, -1.0, 0.0, 5.99, 6.0])
def test_any_margin_has_odds(margin: float) -> None:
    """One token left, broken weights, a tie: never an error."""
    assert 0.0 < Confidence().odds(margin) <= 1.0


def test_wrong_guesses_lower_the_odds_of_their_margin_alone() -> None:
    """The other margins are another matter."""
    confidence = Confidence()
    before = confidence.odds(3.0)
    for _ in range(500):
        confidence.observe(guess(0.1), 9)
    assert confidence.odds(0.1) < 0.05
    assert confidence.odds(3.0) == before


def test_odds_follow_a_change_after_many_verdicts() -> None:
    """Old verdicts fade, so a drafter that becomes right is trusted again."""
    confidence = Confidence()
    for _ in range(10_000):
        confidence.observe(guess(1.0), 9)
    for _ in range(10_000):
        confidence.observe(guess(1.0), 1)
    assert confidence.odds(1.0) > 0.8


def test_shares_follow_where_the_truth_was() -> None:
    """If it is always the third best, that runner-up becomes the better bet."""
    confidence = Confidence()
    assert sorted(confidence.shares(3), reverse=True) == confidence.shares(3)
    for _ in range(100):
        confidence.observe(guess(0.5, 1, 2, 3), 3)
    first, second = confidence.shares(2)
    assert first < 0.2
    assert second > 0.8
    assert len(confidence.shares(9)) < 9


def test_the_mean_follows_all_verdicts() -> None:
    """Whatever their margins were; and it changes its mind."""
    confidence = Confidence()
    for _ in range(10_000):
        confidence.observe(guess(0.1), 9)
        confidence.observe(guess(4.0), 1)
    assert confidence.mean == pytest.approx(0.5, abs=0.01)
    for _ in range(20_000):
        confidence.observe(guess(4.0), 1)
    assert confidence.mean > 0.9
