"""How much this gateway takes on, and when it has finished what it took."""

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from shared.common.errors import Unavailable

REASONS = ("too_many_streams", "too_many_waiting", "too_many_sockets", "draining", "no_target")


class Ticket:
    """One admitted answer; waiting until its first record."""

    def __init__(self, admission: "Admission") -> None:
        self._admission = admission
        self._is_waiting = True
        admission.num_waiting += 1

    def begin(self) -> None:
        """The worker has started on it."""
        if self._is_waiting:
            self._is_waiting = False
            self._admission.num_waiting -= 1


class Admission:
    """Counts answers and sockets against their limits.

    Args:
        max_streams: answers at once; more is this client's fault (429).
        max_waiting: answers without a first record; more means that the workers are behind (503).
    """

    def __init__(self, *, max_streams: int, max_waiting: int) -> None:
        self._max_streams = max_streams
        self._max_waiting = max_waiting
        self.num_streams = 0
        self.num_waiting = 0
        self.num_sockets = 0
        self.is_draining = False
        self.rejections: Counter[str] = Counter(dict.fromkeys(REASONS, 0))
        self._idle = asyncio.Event()
        self._idle.set()

    def refuse(self, reason: str, message: str, *, status: int, retry_after_s: int) -> Unavailable:
        """The error for a refusal, counted."""
        self.rejections[reason] += 1
        return Unavailable(message, status=status, retry_after_s=retry_after_s, code=reason)

    def check_open(self) -> None:
        """Refuse new work while draining.

        Raises:
            Unavailable: 503.
        """
        if self.is_draining:
            raise self.refuse("draining", "shutting down", status=503, retry_after_s=1)

    @contextmanager
    def stream(self, *, num_waiting_elsewhere: int = 0) -> Iterator[Ticket]:
        """Take on one answer until the block ends.

        Args:
            num_waiting_elsewhere: jobs that workers have claimed but not begun.
        Raises:
            Unavailable: draining or too many waiting (503), or too many at once (429).
        """
        self.check_open()
        if self.num_streams >= self._max_streams:
            raise self.refuse(
                "too_many_streams", "too many answers at once", status=429, retry_after_s=1
            )
        if max(self.num_waiting, num_waiting_elsewhere) >= self._max_waiting:
            raise self.refuse(
                "too_many_waiting", "too many requests are waiting", status=503, retry_after_s=2
            )
        ticket = Ticket(self)
        self.num_streams += 1
        self._idle.clear()
        try:
            yield ticket
        finally:
            ticket.begin()
            self.num_streams -= 1
            if self.num_streams == 0:
                self._idle.set()

    @contextmanager
    def socket(self) -> Iterator[None]:
        """Hold one WebSocket until the block ends.

        Raises:
            Unavailable: draining or too many (503).
        """
        self.check_open()
        if self.num_sockets >= self._max_streams:
            raise self.refuse(
                "too_many_sockets", "too many connections", status=503, retry_after_s=2
            )
        self.num_sockets += 1
        try:
            yield
        finally:
            self.num_sockets -= 1

    async def idle(self) -> None:
        """Wait until nothing is being answered."""
        await self._idle.wait()
