"""The grace: waiting for a drafter only where it pays, and never for long."""

import pytest

from target_worker.grace import Grace


def make_grace(answer_s: float, per_token_s: float) -> Grace:
    """A session whose drafter answers after `answer_s`, with one round behind it."""
    grace = Grace()
    grace.confirmed(10, 10 * per_token_s)
    grace.corrected(0.0)
    grace.answered(answer_s)
    grace.corrected(10.0)
    return grace


def wait(grace: Grace, now_s: float = 10.0, plain_s: float = 0.016) -> float:
    return grace.wait_s(now_s, plain_s=plain_s, chance=0.75)


def test_a_quick_drafter_of_a_slow_target_is_waited_for() -> None:
    """16 ms a plain round, 8 ms a token with guesses: 3 ms and a margin are well spent."""
    assert wait(make_grace(0.003, 0.008)) == pytest.approx(0.00375)


def test_a_slow_drafter_is_not_waited_for() -> None:
    """Its answer would cost more than the plain round loses."""
    assert wait(make_grace(0.012, 0.008)) == 0.0


def test_a_session_that_gains_nothing_from_guesses_does_not_wait() -> None:
    """Tokens come as fast as plain rounds: there is nothing to win."""
    assert wait(make_grace(0.001, 0.016)) == 0.0


def test_the_wait_ends_at_its_deadline() -> None:
    """Counted from the correction, whenever it is asked."""
    grace = make_grace(0.003, 0.008)
    assert wait(grace, 10.002) == pytest.approx(0.00175)
    assert wait(grace, 10.004) == 0.0


def test_never_more_than_half_a_plain_round() -> None:
    """The bound, whatever was measured."""
    assert wait(make_grace(0.0079, 0.0001)) == pytest.approx(0.008)


def test_without_a_measurement_nobody_waits() -> None:
    """A new drafter's speed is not known; nor is it after the drafter has gone."""
    grace = Grace()
    grace.corrected(0.0)
    assert wait(grace, 0.0) == 0.0
    grace = make_grace(0.003, 0.008)
    grace.forget()
    assert wait(grace) == 0.0
    grace.corrected(11.0)
    assert wait(grace, 11.0) == 0.0


def test_the_answer_is_timed_from_the_first_correction() -> None:
    """Plain rounds in between do not make a slow drafter look fast."""
    grace = make_grace(0.003, 0.008)
    grace.corrected(10.5)
    grace.answered(11.0)
    grace.corrected(20.0)
    assert wait(grace, 20.0) == 0.0
    grace.answered(20.0)
    grace.answered(21.0)  # a path that nobody waits for says nothing
