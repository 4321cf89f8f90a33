"""One reader of this gateway's inbox, and the subscriptions it wakes.

However many answers stream, the gateway holds one blocking connection. A feed that breaks loses
nothing: every subscription then looks into its log.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Protocol

import structlog

from gateway.job import Job
from gateway.subscriptions import RETRY_S, LogReader, Subscription
from shared.common.errors import Unavailable
from shared.protocol.records import Record

BLOCK_S = 1.0


class Inbox(Protocol):
    """The part of the bus that brings records."""

    async def read_feed(self, *, block_s: float) -> Sequence[tuple[str, str, Record]]:
        """(job id, entry id in the job's log, record), in order; empty after `block_s`."""
        ...


class Feed:
    """Hands records to whoever follows their job."""

    def __init__(self, inbox: Inbox, log: LogReader) -> None:
        self._inbox = inbox
        self._log = log
        self._subscriptions: dict[str, list[Subscription]] = {}
        self._logger = structlog.get_logger("feed")
        self.num_catch_ups = 0

    async def run(self) -> None:
        """Read until cancelled. What nobody follows is dropped."""
        while True:
            try:
                entries = await self._inbox.read_feed(block_s=BLOCK_S)
            except Unavailable as error:
                self._logger.warning("feed_unavailable", reason=str(error))
                self.reset()
                await asyncio.sleep(RETRY_S)
                continue
            for job_id, entry_id, record in entries:
                for subscription in self._subscriptions.get(job_id, ()):
                    subscription.offer(entry_id, record)

    def reset(self) -> None:
        """Entries may have been lost: everybody reads the log next."""
        for subscriptions in self._subscriptions.values():
            for subscription in subscriptions:
                subscription.fall_behind()

    def num_followers(self, job_id: str) -> int:
        """How many readers of this gateway follow a job."""
        return len(self._subscriptions.get(job_id, ()))

    @asynccontextmanager
    async def follow(
        self,
        job: Job,
        start: Callable[[], Awaitable[bool]],
        *,
        observer: Callable[[Record], None] | None = None,
    ) -> AsyncIterator[Subscription]:
        """A subscription that misses nothing from before `start` on.

        Args:
            job: to read.
            start: makes records of the job come to this inbox (submits it, or follows it) and says
                whether there may be older ones.
            observer: see Subscription.
        """
        subscription = Subscription(
            job.job_id, job.request.num_choices, self._log, is_behind=False, observer=observer
        )
        readers = self._subscriptions.setdefault(job.job_id, [])
        readers.append(subscription)
        try:
            if await start():
                subscription.fall_behind()
            yield subscription
        finally:
            subscription.close()
            self.num_catch_ups += subscription.num_catch_ups
            readers.remove(subscription)
            if not readers:
                self._subscriptions.pop(job.job_id, None)
