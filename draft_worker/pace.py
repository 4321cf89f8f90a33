"""When to begin a step behind one under way: as late as it can without the device's waiting.

Begun early it would know less: what a target says while a step computes decides the next one.
"""

from shared.common.clock import Clock

MARGIN_S = 0.0001  # a thread that waits is not woken on the dot
LEAST_WAIT_S = 0.00005  # less: the step was over before anybody waited for it
SHORTER = 0.95  # of a step that was over too early to be measured
EAGERLY, SLOWLY = 0.3, 0.03  # shares of a new measurement
OUTLIER = 2.0  # a measurement counts at most so many times what was expected


class Pace:
    """How long steps compute and how long beginning one takes. One caller."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._step_s = 0.0  # nearly the least that a step computes
        self._begin_s = 0.0  # nearly the most that planning and launching take
        self._started_s = 0.0  # of the step that computes now

    def now_s(self) -> float:
        """The clock's."""
        return self._clock.monotonic_s()

    def begun(self, asked_s: float, *, is_behind: bool) -> None:
        """A step was begun, from `asked_s` on; behind another, it waits for that one's end."""
        now_s = self.now_s()
        took_s = _bounded(now_s - asked_s, self._begin_s)
        self._begin_s += (took_s - self._begin_s) * (EAGERLY if took_s > self._begin_s else SLOWLY)
        if not is_behind:
            self._started_s = now_s

    def landed(self, waited_from_s: float) -> None:
        """A step is over; the one behind it, if any, computes from now on."""
        now_s = self.now_s()
        took_s = _bounded(now_s - self._started_s, self._step_s)
        if now_s - waited_from_s < LEAST_WAIT_S:
            self._step_s *= SHORTER
        elif took_s < self._step_s or not self._step_s:
            self._step_s = took_s
        else:
            self._step_s += (took_s - self._step_s) * SLOWLY
        self._started_s = now_s

    @property
    def listen_s(self) -> float:
        """Seconds until the next step should be begun, while one computes; not above 0: now."""
        return self._started_s + self._step_s - self._begin_s - MARGIN_S - self.now_s()


def _bounded(took_s: float, expected_s: float) -> float:
    """What a measurement counts for; the first one as it is."""
    return min(took_s, OUTLIER * expected_s) if expected_s else took_s
