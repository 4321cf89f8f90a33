"""The pulse of a counter."""

from target_worker.health import Pulse
from tests.fakes import ManualClock


def test_a_counter_that_moves_is_alive() -> None:
    """Time since the last look that saw it move."""
    clock, count = ManualClock(), [0]
    pulse = Pulse(lambda: count[0], clock)
    clock.advance(3.0)
    assert pulse.still_s() == 3.0
    count[0] += 1
    assert pulse.still_s() == 0.0
    clock.advance(1.0)
    assert pulse.still_s() == 1.0
