"""The bus in memory, as far as readers see it."""

import asyncio
from collections.abc import Sequence

from gateway.transcript import Entry
from shared.common.errors import Unavailable
from shared.protocol.records import Record
from shared.protocol.workers import WorkerStatus


class MemoryLog:
    """Logs that tests append to."""

    def __init__(self, *job_ids: str) -> None:
        self.entries: dict[str, list[Entry]] = {job_id: [] for job_id in job_ids}
        self.num_reads = 0
        self.is_away = False

    def append(self, job_id: str, record: Record) -> str:
        """Log a record; its entry id."""
        entries = self.entries[job_id]
        entries.append((f"{len(entries) + 1}-0", record))
        return entries[-1][0]

    async def read_log(self, job_id: str, *, after: str = "0") -> list[Entry]:
        """See gateway.subscriptions.LogReader."""
        self.num_reads += 1
        await asyncio.sleep(0)
        if self.is_away:
            raise Unavailable("away")
        start = int(after.partition("-")[0])
        return self.entries.get(job_id, [])[start:]

    async def exists(self, job_id: str) -> bool:
        """See gateway.subscriptions.LogReader."""
        return job_id in self.entries


class MemoryFleet:
    """Heartbeats that tests set."""

    def __init__(self, *workers: WorkerStatus) -> None:
        self.beats: Sequence[WorkerStatus] = workers
        self.is_away = False
        self.num_looks = 0

    async def workers(self) -> Sequence[WorkerStatus]:
        """See gateway.roster.Fleet."""
        self.num_looks += 1
        if self.is_away:
            raise Unavailable("away")
        return self.beats

    async def num_unclaimed(self) -> int:
        """See gateway.roster.Fleet."""
        return 3


def worker(worker_id: str = "target:a", **fields: object) -> WorkerStatus:
    """A target's heartbeat."""
    known: dict[str, object] = {
        "worker_id": worker_id,
        "role": worker_id.partition(":")[0],
        "model": "m",
        "max_model_len": 512,
        "vocab_size": 10,
        "started_ms": 1_000,
    }
    return WorkerStatus(**{**known, **fields})  # type: ignore[arg-type] # checked by the tests
