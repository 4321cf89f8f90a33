"""Outcomes to the server, one write at a time, in order, until the server has them.

While one commit is under way the next outcomes collect and go together. A server that is away stops
nothing but the engine's running ahead: the same write is tried again until it answers.
"""

import asyncio
from collections.abc import Callable

import structlog

from shared.bus.jobs import Claim
from shared.bus.log import Append, CommitReply, CommitStatus, SessionLog
from shared.bus.mail import DraftBoard
from shared.common.errors import Unavailable
from shared.protocol.messages import DraftRequest, Message
from shared.protocol.records import Done, Failed, Record
from target_worker.job import Ended
from target_worker.outcome import Outcome

RETRY_S = 1.0  # after the bus has given up, which takes it a while

_log = structlog.get_logger()

Answered = Callable[[Claim, CommitReply, bool], None]


class Committer:
    """Owns the way to the logs. Everything that is written to one goes through here.

    Args:
        log: where to commit.
        board: where to ask for drafts.
        answered: called for each append with its claim, the server's answer and whether the job
            has ended with it.
        committed: called with the number of outcomes that are safe.
    """

    def __init__(
        self,
        log: SessionLog,
        board: DraftBoard,
        *,
        answered: Answered,
        committed: Callable[[int], None],
    ) -> None:
        self._log = log
        self._board = board
        self._answered = answered
        self._committed = committed
        self._waiting = Outcome()
        self._num_waiting = 0  # outcomes of the engine among it
        self._wake = asyncio.Event()
        self._is_idle = asyncio.Event()
        self._is_idle.set()

    def push(self, outcome: Outcome) -> None:
        """Take in an outcome of the engine."""
        self._num_waiting += 1
        self._take(outcome)

    def write(self, claim: Claim, *records: Record) -> None:
        """Append records of our own; without any, only ask for the cancel flag."""
        outcome = Outcome()
        outcome.append(claim, records)
        self._take(outcome)

    async def run(self) -> None:
        """Commit what comes, until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            outcome, self._waiting = self._waiting, Outcome()
            num_outcomes, self._num_waiting = self._num_waiting, 0
            await self._commit(outcome)
            self._committed(num_outcomes)
            if not self._wake.is_set():
                self._is_idle.set()

    async def flushed(self) -> None:
        """Wait until everything taken in is committed."""
        await self._is_idle.wait()

    def _take(self, outcome: Outcome) -> None:
        self._waiting.merge(outcome)
        self._is_idle.clear()
        self._wake.set()

    async def _commit(self, outcome: Outcome) -> None:
        appends = [Append(claim, tuple(records)) for claim, records in outcome.records.values()]
        mail = [(worker_id, tuple(messages)) for worker_id, messages in outcome.mail.items()]
        replies = await self._until_answered(appends, mail)
        for append, reply in zip(appends, replies, strict=True):
            is_over = bool(append.records) and isinstance(append.records[-1], Done | Failed)
            if reply.status is not CommitStatus.OK:
                _log.warning("append_refused", job_id=append.claim.job_id, status=reply.status)
            self._answered(append.claim, reply, is_over)
        for request in outcome.requests:
            await self._ask(request)
        for ended in outcome.ended:
            _report(ended)

    async def _until_answered(
        self, appends: list[Append], mail: list[tuple[str, tuple[Message, ...]]]
    ) -> list[CommitReply]:
        while True:
            try:
                return await self._log.commit(appends, mail=mail)
            except Unavailable as error:
                _log.warning("commit_stuck", num_appends=len(appends), reason=error.message)
                await asyncio.sleep(RETRY_S)

    async def _ask(self, request: DraftRequest) -> None:
        try:
            await self._board.post(request)
        except Unavailable as error:  # soft: asked again by and by
            _log.warning("draft_request_lost", reason=error.message)


def _report(ended: Ended) -> None:
    _log.info(
        "job_finished",
        job_id=ended.job_id,
        outcome=ended.outcome,
        prompt_tokens=ended.prompt_tokens,
        cached_tokens=ended.cached_tokens,
        completion_tokens=ended.completion_tokens,
        num_drafted=ended.num_drafted,
        num_accepted=ended.num_accepted,
        ttft_s=None if ended.ttft_s is None else round(ended.ttft_s, 6),
        duration_s=round(ended.duration_s, 6),
    )
