"""A target worker without a model: claims real jobs and logs what a script says."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress

from shared.bus.connection import Bus
from shared.bus.fleet import Fleet
from shared.bus.jobs import Claim, Delivery, JobQueue
from shared.bus.log import Append, CommitReply, SessionLog
from shared.common.errors import ClientError
from shared.protocol.jobs import parse_entry
from shared.protocol.records import (
    Done,
    Failed,
    Finished,
    FinishReason,
    Record,
    SpeculationStats,
    Tokens,
    Usage,
)
from shared.protocol.requests import ChatRequest, parse_request
from shared.protocol.workers import SpeculationTotals, WorkerStatus

MODEL = "storyteller"
SEED = 7
PROMPT_TOKENS = 5
SPECULATION = SpeculationStats(
    num_rounds=4, num_draft_tokens=12, num_accepted_tokens=6, accepted_per_position=(3, 2, 1)
)
STORY = ("Once", " upon", " a time", ", a", " dragon", " flew", ".")

Script = Callable[["Turn"], AsyncIterator[tuple[Record, ...]]]


class Turn:
    """One claimed job, and what its script may look at."""

    def __init__(self, request: ChatRequest) -> None:
        self.request = request
        self.is_cancelled = False


def tokens(*texts: str, choice: int = 0, offset: int = 0, per_record: int = 1) -> list[Record]:
    """Token records of `per_record` tokens each, from `offset` on."""
    records: list[Record] = []
    for start in range(0, len(texts), per_record):
        part = texts[start : start + per_record]
        ids = tuple(100 + offset + start + i for i in range(len(part)))
        records.append(Tokens(choice, offset + start, ids, "".join(part)))
    return records


def done(num_tokens: int, *, text: str = "", num_choices: int = 1, choice: int = 0) -> Done:
    """The terminal record of a job that went well."""
    return Done(
        choice=choice,
        text=text,
        reasons=(FinishReason.STOP,) * num_choices,
        seed=SEED,
        usage=Usage(PROMPT_TOKENS, 2, num_tokens),
        speculation=SPECULATION,
    )


def story(num_choices: int = 1) -> list[Record]:
    """The whole log of a job whose choices tell the same story at different paces."""
    records: list[Record] = []
    for choice in range(num_choices):
        records += tokens(*STORY, choice=choice, per_record=1 + choice)
        is_last = choice == num_choices - 1
        total = len(STORY) * num_choices
        records.append(
            done(total, text=" End", num_choices=num_choices, choice=choice)
            if is_last
            else Finished(choice, " End", FinishReason.STOP)
        )
    return records


async def tell_story(turn: Turn) -> AsyncIterator[tuple[Record, ...]]:
    """The default script: everything at once, a record a commit."""
    for record in story(turn.request.num_choices):
        yield (record,)


class ScriptedTarget:
    """Serves jobs by a script, one task a job."""

    def __init__(self, bus: Bus, script: Script = tell_story, *, model: str = MODEL) -> None:
        self.script = script
        self.turns: list[Turn] = []
        self.status = WorkerStatus(
            worker_id=bus.worker_id,
            role="target",
            model=model,
            max_model_len=512,
            vocab_size=4_096,
            started_ms=1_700_000_000_000,
            speculation=SpeculationTotals(
                num_drafts=10,
                num_draft_tokens=30,
                num_accepted_tokens=18,
                accepted_per_position=(9, 6, 3),
            ),
        )
        self._queue, self._log, self._fleet = JobQueue(bus), SessionLog(bus), Fleet(bus)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Serve while the block runs."""
        await self._fleet.beat(self.status)
        serving = asyncio.create_task(self._serve())
        try:
            yield
        finally:
            serving.cancel()
            with suppress(asyncio.CancelledError):
                await serving

    async def _serve(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._beat())
            while True:
                for delivery in await self._queue.fetch(16, block_s=1.0):
                    tasks.create_task(self._tell(delivery))

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(0.5)
            await self._fleet.beat(self.status)

    async def _tell(self, delivery: Delivery) -> None:
        entry = parse_entry(delivery.entry_id, delivery.fields)
        try:
            request = parse_request(entry.body)
        except ClientError as error:
            await self._queue.bury(delivery, reason="bad", error=Failed(error.code, error.message))
            return
        claim = await self._queue.claim(delivery, entry, seed=SEED, num_choices=request.num_choices)
        if claim is None:
            return
        turn = Turn(request)
        self.turns.append(turn)
        turn.is_cancelled = claim.is_cancelled
        async for records in self.script(turn):
            reply = await self._commit(claim, records)
            if reply.is_cancelled:
                turn.is_cancelled = True
                await self._commit(claim, (Failed("cancelled", "cancelled", status=499),))
                return

    async def _commit(self, claim: Claim, records: Sequence[Record]) -> CommitReply:
        (reply,) = await self._log.commit([Append(claim, tuple(records))])
        return reply
