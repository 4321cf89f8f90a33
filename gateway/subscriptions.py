"""One reader of one job: every entry of its log once and in order, however the feed behaves.

The feed is only a faster way to the log. What arrives through it is believed as far as offsets
prove it; after a gap, an overflow, a reset or some seconds of silence the log itself is read. The
buffer is small on purpose: while a slow client's socket is full the entries stay in the log.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Protocol

from gateway.config import SILENCE_S
from gateway.position import Position, Step
from gateway.transcript import Entry
from shared.common.errors import PeerError, Unavailable
from shared.protocol.records import Failed, Record, Tokens

RETRY_S = 0.1
MAX_BUFFERED = 64  # entries; seconds of one stream, and a slow client re-reads the log anyway
LOST = Failed("job_lost", "the job's log is gone", status=500)
DIVERGED = Failed("log_diverged", "the job's log contradicts what was already read", status=500)


class LogReader(Protocol):
    """The part of the bus that a subscription needs."""

    async def read_log(self, job_id: str, *, after: str = "0") -> list[tuple[str, Record]]:
        """The entries after an id."""
        ...

    async def exists(self, job_id: str) -> bool:
        """Whether the server still knows the job."""
        ...


class Subscription:
    """Reads one job from the start of its log. One caller of `read` at a time.

    Args:
        job_id: of the job.
        num_choices: of the job.
        log: where the truth is.
        is_behind: whether entries may exist that the feed will not bring.
        observer: told of each record that the feed brings, when it comes; never blocks.
    """

    def __init__(
        self,
        job_id: str,
        num_choices: int,
        log: LogReader,
        *,
        is_behind: bool,
        observer: Callable[[Record], None] | None = None,
    ) -> None:
        self.job_id = job_id
        self.position = Position(num_choices)
        # Offsets order the entries of one choice; only the log orders those of several.
        self._is_provable = num_choices == 1
        self._log = log
        self._is_behind = is_behind
        self._observer = observer
        self._buffer: deque[Entry] = deque()
        self._last_id = "0-0"
        self._news = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._check_s = self._loop.time() + SILENCE_S  # when to look into the log
        # One timer for many waits: it rings when the first of them ran out, and is then set anew.
        self._alarm: asyncio.TimerHandle | None = None
        self._alarm_s = 0.0
        self.num_catch_ups = 0  # how often the log had to be read

    def offer(self, entry_id: str, record: Record) -> None:
        """Take a record from the feed."""
        if self._observer is not None:
            self._observer(record)
        if len(self._buffer) >= MAX_BUFFERED or not self._is_provable:
            self.fall_behind()
        elif not self._is_behind:
            self._buffer.append((entry_id, record))
            self._news.set()

    def fall_behind(self) -> None:
        """Forget the feed; the next read goes to the log."""
        self._buffer.clear()
        self._is_behind = True
        self._news.set()

    def close(self) -> None:
        """Nobody reads on."""
        if self._alarm is not None:
            self._alarm.cancel()

    @property
    def has_begun(self) -> bool:
        """Whether anything of the answer is known."""
        return self.position.is_over or any(self.position.lengths)

    async def read(self, timeout_s: float) -> list[Entry]:
        """The next entries, or none after `timeout_s` seconds without any.

        A log that is gone, or that is not the one read before, ends in a Failed record of ours.
        Cancelling is safe: entries are either returned or still to be read.
        """
        now_s = self._loop.time
        deadline_s = now_s() + timeout_s
        while not self.position.is_over:
            self._news.clear()
            entries = await self._next()
            if entries or now_s() >= deadline_s:
                return entries
            if not self._is_behind:
                await self._wait(min(deadline_s, self._check_s))
        return []

    async def _next(self) -> list[Entry]:
        if not self._is_behind:
            return self._proven()
        try:
            return await self._catch_up()
        except Unavailable:
            # The server is away; the log will be there when it is back.
            await asyncio.sleep(RETRY_S)
            return []

    async def _wait(self, until_s: float) -> None:
        """Wait for news; at most until then, and sometimes less."""
        if self._alarm is None or until_s < self._alarm_s:
            self.close()
            self._alarm, self._alarm_s = self._loop.call_at(until_s, self._ring), until_s
        await self._news.wait()
        if not self._buffer and self._loop.time() >= self._check_s:
            self.fall_behind()

    def _ring(self) -> None:
        self._alarm = None
        self._news.set()

    def _proven(self) -> list[Entry]:
        entries: list[Entry] = []
        while self._buffer:
            entry = self._buffer.popleft()
            step = self.position.step(entry[1])
            if step is Step.NEXT:
                self._take(entry, entries)
            elif step is not Step.STALE:
                self.fall_behind()
        return entries

    async def _catch_up(self) -> list[Entry]:
        # From here on the feed counts again: what it brings during the read comes after the read.
        self._is_behind = False
        try:
            found = await self._log.read_log(self.job_id, after=self._last_id)
            is_known = bool(found) or await self._log.exists(self.job_id)
        except (Unavailable, asyncio.CancelledError):
            self.fall_behind()
            raise
        except PeerError:
            found, is_known = [(self._last_id, DIVERGED)], True
        self.num_catch_ups += 1
        self._check_s = self._loop.time() + SILENCE_S
        entries: list[Entry] = []
        for entry in found:
            step = self.position.step(entry[1])
            if isinstance(entry[1], Tokens) and step not in (Step.NEXT, Step.STALE):
                self._take((entry[0], DIVERGED), entries)
                return entries
            if step is not Step.STALE:
                self._take(entry, entries)
        if not is_known and not self._buffer:
            self._take((self._last_id, LOST), entries)
        return entries

    def _take(self, entry: Entry, entries: list[Entry]) -> None:
        self.position.advance(entry[1])
        self._last_id = entry[0]
        self._check_s = self._loop.time() + SILENCE_S
        entries.append(entry)
