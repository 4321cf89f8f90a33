"""Time as an argument, so that tests never sleep."""

import time
from typing import Protocol


class Clock(Protocol):
    """Where the time comes from."""

    def monotonic_s(self) -> float:
        """Seconds since some fixed moment; never goes back. For intervals."""
        ...

    def unix_ms(self) -> int:
        """Milliseconds since 1970 (UTC); may jump. For deadlines that cross processes."""
        ...


class SystemClock:
    """The machine's own clocks."""

    def monotonic_s(self) -> float:
        """See Clock."""
        return time.monotonic()

    def unix_ms(self) -> int:
        """See Clock."""
        return time.time_ns() // 1_000_000
