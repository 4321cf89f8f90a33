"""Where requests become jobs and jobs become answers: the gateway's only way to the bus."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Protocol

import structlog

from gateway.admission import Admission
from gateway.answer import Answer, Meter
from gateway.feed import Feed
from gateway.job import Job, read_job
from gateway.metrics import Metrics
from gateway.roster import Roster
from gateway.subscriptions import LogReader
from gateway.transcript import Transcript
from shared.common.clock import Clock
from shared.common.errors import ClientError, PeerError, Unavailable
from shared.protocol.jobs import JobEntry
from shared.protocol.limits import MAX_ID_CHARS


class JobDesk(LogReader, Protocol):
    """The part of the bus that the desk needs. Every call may raise Unavailable."""

    async def submit(self, entry: JobEntry) -> None:
        """Queue a job; its records come to this gateway's inbox."""
        ...

    async def body(self, job_id: str) -> bytes | None:
        """The stored body, or None when the job is unknown."""
        ...

    async def cancel(self, job_id: str) -> bool:
        """Ask for the end of a job; False when it is unknown or has ended."""
        ...

    async def follow(self, job_id: str) -> None:
        """Copy a job's records to this gateway's inbox."""
        ...

    async def unfollow(self, job_id: str) -> None:
        """The opposite."""
        ...


class Desk:
    """Submits, follows, finds and cancels jobs.

    Args:
        bus: see JobDesk.
        gateway_id: this gateway's inbox.
        feed: reads that inbox.
        admission: the limits.
        roster: the workers.
        metrics: the counts.
        clock: for latencies and creation times.
    """

    def __init__(
        self,
        bus: JobDesk,
        *,
        gateway_id: str,
        feed: Feed,
        admission: Admission,
        roster: Roster,
        metrics: Metrics,
        clock: Clock,
    ) -> None:
        self._bus = bus
        self._gateway_id = gateway_id
        self._feed = feed
        self._roster = roster
        self._logger = structlog.get_logger("desk")
        self.admission = admission
        self.metrics = metrics
        self.clock = clock

    @asynccontextmanager
    async def submit(
        self, job: Job, *, traceparent: str = "", is_shared: bool = False
    ) -> AsyncIterator[Answer]:
        """Queue a job and read its answer.

        Args:
            job: a checked one.
            traceparent: the caller's W3C trace context.
            is_shared: the id may be known already (an idempotency key): then that job is read.
        Raises:
            Unavailable: no worker, no server or no room.
            ClientError: the model is unknown, or the shared id belongs to another request.
        """
        await self._roster.require(job.request.model)
        with self.admission.stream(num_waiting_elsewhere=self._roster.num_waiting) as ticket:
            stored = await self._bus.body(job.job_id) if is_shared else None
            if stored is not None:
                job = self._same(job, stored)
            entry = JobEntry(job.job_id, job.body, traceparent=traceparent, reply=self._gateway_id)
            meter = Meter(self.metrics, self.clock)

            async def start() -> bool:
                if stored is None:
                    await self._submit(entry, is_shared=is_shared)
                if is_shared:
                    await self._bus.follow(job.job_id)
                return is_shared

            async with self._feed.follow(job, start, observer=meter.observe) as subscription:
                self._logger.info("job_submitted", job_id=job.job_id, model=job.request.model)
                answer = Answer(job, subscription, ticket, meter)
                try:
                    yield answer
                finally:
                    answer.close()

    @asynccontextmanager
    async def resume(self, job: Job) -> AsyncIterator[Answer]:
        """Read the answer of a job that was submitted before, here or elsewhere, from its start.

        Raises:
            Unavailable: no server or no room.
        """
        with self.admission.stream() as ticket:

            async def start() -> bool:
                await self._bus.follow(job.job_id)
                return True

            async with self._feed.follow(job, start) as subscription:
                self.metrics.num_resumes += 1
                answer = Answer(job, subscription, ticket, None)
                try:
                    yield answer
                finally:
                    if not answer.is_over and self._feed.num_followers(job.job_id) == 1:
                        with suppress(Unavailable):  # then the feed brings what nobody reads
                            await self._bus.unfollow(job.job_id)

    async def find(self, job_id: str, *, code: str = "not_found", param: str = "id") -> Job:
        """A job by its id.

        Raises:
            ClientError: nobody knows it (404).
            Unavailable: the server does not answer.
        """
        body = await self._bus.body(job_id) if len(job_id) <= MAX_ID_CHARS else None
        try:
            if body is not None:
                return read_job(job_id, body)
        except PeerError as error:
            self._logger.warning("job_unreadable", job_id=job_id, reason=str(error))
        message = f"there is no answer {job_id[:64]!r}; finished ones are kept for an hour"
        raise ClientError(message, param=param, code=code, status=404)

    async def transcript(self, job: Job) -> Transcript:
        """What is logged of a job by now.

        Raises:
            Unavailable: the server does not answer.
        """
        transcript = Transcript(job.request.num_choices)
        for entry in await self._bus.read_log(job.job_id):
            transcript.add(entry)
        return transcript

    async def cancel(self, job_id: str) -> bool:
        """Ask for the end of a job; False when it is unknown or has ended.

        Raises:
            Unavailable: the server does not answer.
        """
        return await self._bus.cancel(job_id)

    async def abandon(self, job: Job) -> None:
        """The client is gone: end its job, unless it asked for something else or others read it."""
        if job.request.on_disconnect == "detach" or self._feed.num_followers(job.job_id):
            return
        try:
            await self.cancel(job.job_id)
        except Unavailable as error:
            # Nobody is left to tell; the job runs to its end.
            self._logger.warning("job_not_cancelled", job_id=job.job_id, reason=str(error))
        else:
            self._logger.info("job_abandoned", job_id=job.job_id)

    async def _submit(self, entry: JobEntry, *, is_shared: bool) -> None:
        try:
            await self._bus.submit(entry)
        except ClientError:
            # The same key at the same moment elsewhere: the bodies differ in their origin.
            stored = await self._bus.body(entry.job_id) if is_shared else None
            if stored is None:
                raise
            self._same(read_job(entry.job_id, entry.body), stored)

    @staticmethod
    def _same(job: Job, stored: bytes) -> Job:
        known = read_job(job.job_id, stored)
        if known.asks != job.asks:
            raise ClientError(
                "this idempotency key was used for another request",
                param="Idempotency-Key",
                code="idempotency_key_reused",
                status=409,
            )
        return known
