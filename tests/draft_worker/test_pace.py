"""draft_worker/pace.py: when to begin a step behind another."""

import pytest

from draft_worker.pace import LEAST_WAIT_S, MARGIN_S, Pace
from tests.fakes import ManualClock

STEP_S, BEGIN_S = 0.001, 0.0004


def play(pace: Pace, clock: ManualClock, num_steps: int, *, listens: bool = True) -> float:
    """Steps behind one another on a device that takes STEP_S; how long it stood still."""
    clock.advance(BEGIN_S)
    pace.begun(clock.monotonic_s() - BEGIN_S, is_behind=False)
    ends_s, idle_s = clock.monotonic_s() + STEP_S, 0.0
    for _ in range(num_steps):
        if listens:
            clock.advance(max(0.0, pace.listen_s))
        asked_s = clock.monotonic_s()
        clock.advance(BEGIN_S)
        pace.begun(asked_s, is_behind=True)
        began_s = max(ends_s, clock.monotonic_s())
        idle_s += began_s - ends_s
        waited_from_s = clock.monotonic_s()
        clock.advance(max(0.0, ends_s - waited_from_s))
        pace.landed(waited_from_s)
        ends_s = began_s + STEP_S
    return idle_s


def test_the_next_step_is_begun_just_in_time() -> None:
    """After some steps all but what beginning takes, and a margin, is spent listening."""
    clock = ManualClock()
    pace = Pace(clock)
    play(pace, clock, 20, listens=False)
    assert play(pace, clock, 100) == pytest.approx(0.0, abs=1e-9)
    assert pace.listen_s == pytest.approx(STEP_S - BEGIN_S - MARGIN_S, rel=0.1)


def test_steps_that_were_over_too_early_are_thought_shorter() -> None:
    """Whoever listens too long would never see it otherwise: nothing is left to wait for."""
    clock = ManualClock()
    pace = Pace(clock)
    play(pace, clock, 20)
    pace._step_s = 20 * STEP_S
    assert play(pace, clock, 200) > STEP_S
    assert play(pace, clock, 100) < 10 * LEAST_WAIT_S


def test_one_slow_step_is_no_reason_to_be_late() -> None:
    """A prompt's chunk, a machine that was busy, a start that compiled: estimates hardly move."""
    clock = ManualClock()
    pace = Pace(clock)
    play(pace, clock, 50)
    asked_s = clock.monotonic_s()
    clock.advance(20 * STEP_S)
    pace.begun(asked_s, is_behind=False)
    waited_from_s = clock.monotonic_s()
    clock.advance(50 * STEP_S)
    pace.landed(waited_from_s)
    assert play(pace, clock, 5) == pytest.approx(0.0, abs=5 * MARGIN_S)
    assert 0.0 < pace.listen_s < STEP_S


def test_a_start_that_took_long_is_forgotten_at_once() -> None:
    """The first step may compile and load; the next one is measured anew."""
    clock = ManualClock()
    pace = Pace(clock)
    pace.begun(clock.monotonic_s(), is_behind=False)
    waited_from_s = clock.monotonic_s()
    clock.advance(5_000 * STEP_S)
    pace.landed(waited_from_s)
    play(pace, clock, 3, listens=False)
    assert pace.listen_s < STEP_S


def test_nothing_known_means_no_waiting() -> None:
    """The first step behind another is begun at once."""
    clock = ManualClock()
    pace = Pace(clock)
    pace.begun(clock.monotonic_s(), is_behind=False)
    assert pace.listen_s <= 0.0
