"""Whether the engine thread makes progress. Sees only a counter that grows."""

from collections.abc import Callable

from shared.common.clock import Clock


class Pulse:
    """Tells how long a counter has stood still.

    Args:
        count: grows as long as there is progress.
        clock: time.
    """

    def __init__(self, count: Callable[[], int], clock: Clock) -> None:
        self._count = count
        self._clock = clock
        self._last = count()
        self._moved_s = clock.monotonic_s()

    def still_s(self) -> float:
        """Seconds since the counter was last seen to move: only as fine as it is asked for."""
        now_s, count = self._clock.monotonic_s(), self._count()
        if count != self._last:
            self._last, self._moved_s = count, now_s
        return now_s - self._moved_s
