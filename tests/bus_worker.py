"""A worker without an engine: what tests of the bus, and of those who use it, take jobs with."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from shared.bus.connection import Bus
from shared.bus.fleet import Fleet
from shared.bus.jobs import Claim, Delivery, JobQueue
from shared.bus.link import Command
from shared.bus.log import Append, CommitReply, SessionLog
from shared.protocol.jobs import JobEntry, parse_entry
from shared.protocol.keys import TARGET_GROUP
from shared.protocol.records import (
    Done,
    FinishReason,
    Record,
    SpeculationStats,
    Tokens,
    Usage,
)
from shared.protocol.workers import WorkerStatus

SEED = 2**64 - 1  # the largest: one that a double would round
_DEADLINE_S = 15.0
_POLL_S = 0.02

T = TypeVar("T")


async def until(look: Callable[[], Awaitable[T]], *, deadline_s: float = _DEADLINE_S) -> T:
    """Look again and again until there is something to see."""
    async with asyncio.timeout(deadline_s):
        while not (seen := await look()):
            await asyncio.sleep(_POLL_S)
        return seen


def status(worker_id: str) -> WorkerStatus:
    """A heartbeat with nothing special in it."""
    return WorkerStatus(
        worker_id=worker_id,
        role=worker_id.partition(":")[0],
        model="storyteller",
        max_model_len=512,
        vocab_size=4_096,
        started_ms=0,
    )


def tokens(offset: int, *token_ids: int, choice: int = 0) -> Tokens:
    """A token record whose text nobody minds."""
    return Tokens(choice, offset, token_ids, "".join(f" {token}" for token in token_ids))


def done(*, choice: int = 0, num_choices: int = 1) -> Done:
    """A terminal record."""
    reasons = (FinishReason.STOP,) * num_choices
    return Done(choice, "", reasons, SEED, Usage(3, 0, 2), SpeculationStats(1, 4, 2, (1, 1, 0, 0)))


@dataclass
class BusWorker:
    """One worker's view of the bus."""

    bus: Bus
    jobs: JobQueue
    log: SessionLog
    fleet: Fleet

    @classmethod
    async def start(cls, bus: Bus) -> "BusWorker":
        """A worker with a heartbeat."""
        worker = cls(bus, JobQueue(bus), SessionLog(bus), Fleet(bus))
        await worker.beat()
        return worker

    async def beat(self) -> None:
        """Have a heartbeat (again)."""
        await self.fleet.beat(status(self.bus.worker_id))

    async def die(self) -> None:
        """Lose the heartbeat, as after a kill once the lease has passed."""
        await self.fleet.retire(self.bus.worker_id)

    async def submit(self, job_id: str, **fields: str) -> str:
        """Queue a job."""
        return await self.jobs.submit(JobEntry(job_id=job_id, body=b"{}", **fields))  # type: ignore[arg-type] # strings only

    async def fetch(self, count: int = 1) -> list[Delivery]:
        """What is waiting now."""
        return await self.jobs.fetch(count, block_s=0.0)

    async def rescue(self, count: int = 1) -> list[Delivery]:
        """What a dead worker left; waits for a server that has only just started."""
        return await until(lambda: self.jobs.rescue(count))

    async def claim(self, delivery: Delivery, *, num_choices: int = 1) -> Claim | None:
        """Own a delivery."""
        entry = parse_entry(delivery.entry_id, delivery.fields)
        return await self.jobs.claim(delivery, entry, seed=SEED, num_choices=num_choices)

    async def take(self, *, num_choices: int = 1) -> Claim:
        """Fetch and claim the next job."""
        (delivery,) = await self.fetch()
        claim = await self.claim(delivery, num_choices=num_choices)
        assert claim is not None
        return claim

    async def append(self, claim: Claim, *records: Record) -> CommitReply:
        """Commit records of one job."""
        (reply,) = await self.log.commit([Append(claim, records)])
        return reply

    async def records(self, job_id: str) -> list[Record]:
        """The whole log of a job."""
        return [record for _, record in await self.log.read(job_id)]

    async def num_pending(self) -> int:
        """Entries delivered to any worker and not acked."""
        streams = self.bus.keys.all_jobs
        commands: list[Command] = [("XPENDING", stream, TARGET_GROUP) for stream in streams]
        return sum(reply[0] for reply in await self.bus.execute(commands))
