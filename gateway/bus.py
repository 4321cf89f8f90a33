"""The bus as a gateway uses it: jobs in, records out, heartbeats read."""

from collections.abc import Sequence

from shared.bus.connection import Bus
from shared.bus.fleet import Fleet
from shared.bus.jobs import JobQueue
from shared.bus.log import SessionLog
from shared.bus.mail import Feed, FeedEntry
from shared.protocol.jobs import JobEntry
from shared.protocol.records import Record
from shared.protocol.workers import WorkerStatus


class GatewayBus:
    """Narrows the bus to what gateway.desk, gateway.feed and gateway.roster ask for.

    Every call may raise Unavailable; all are safe to repeat.
    """

    def __init__(self, bus: Bus) -> None:
        self.gateway_id = bus.worker_id
        self._queue = JobQueue(bus)
        self._log = SessionLog(bus)
        self._feed = Feed(bus)
        self._fleet = Fleet(bus)

    async def submit(self, entry: JobEntry) -> None:
        """Queue a job. Raises ClientError when its id is known with another body."""
        await self._queue.submit(entry)

    async def body(self, job_id: str) -> bytes | None:
        """The stored body of a job; None when it is unknown."""
        info = await self._log.info(job_id)
        return info.body or None if info else None

    async def exists(self, job_id: str) -> bool:
        """Whether the server knows a job."""
        return await self._log.info(job_id) is not None

    async def read_log(self, job_id: str, *, after: str = "0") -> list[tuple[str, Record]]:
        """The entries of a job's log after an id."""
        return await self._log.read(job_id, after=after)

    async def cancel(self, job_id: str) -> bool:
        """Ask for the end of a job; False when it is unknown or has ended."""
        return await self._log.cancel(job_id)

    async def follow(self, job_id: str) -> None:
        """Copy a job's records to this gateway's feed."""
        await self._log.follow(job_id, self.gateway_id)

    async def unfollow(self, job_id: str) -> None:
        """The opposite."""
        await self._log.unfollow(job_id, self.gateway_id)

    async def read_feed(self, *, block_s: float) -> Sequence[FeedEntry]:
        """New records of the jobs that are followed."""
        return await self._feed.read(block_s=block_s)

    async def workers(self) -> Sequence[WorkerStatus]:
        """Every worker with a heartbeat."""
        return await self._fleet.workers()

    async def num_unclaimed(self) -> int:
        """Jobs that no worker has been given."""
        return await self._queue.waiting()
