"""One target worker: the engine in its thread, and on the event loop everything it says and hears.

Knows which claims are this worker's; the engine knows what they have come to.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from shared.bus.connection import Bus
from shared.bus.fleet import Fleet
from shared.bus.jobs import Claim, JobQueue
from shared.bus.log import CommitReply, CommitStatus, SessionLog
from shared.bus.mail import DraftBoard, Inbox
from shared.common.clock import Clock
from shared.common.errors import ConfigError, Unavailable
from shared.protocol.limits import HEARTBEAT_INTERVAL_S
from shared.protocol.messages import CancelNotice
from shared.protocol.records import Failed
from shared.protocol.workers import WorkerStatus
from target_worker.admission import Served
from target_worker.admitted import AdmittedJob
from target_worker.commits import Committer
from target_worker.config import Config
from target_worker.engine import Engine
from target_worker.engine_thread import EngineThread
from target_worker.handover import Handover
from target_worker.health import Pulse
from target_worker.intake import Intake

INBOX_BLOCK_S = 1.0
POLL_S = 1.0  # a job that has not been committed for so long is asked for its cancel flag
WATCH_S = 0.25
RETRY_S = 1.0
FLUSH_S = 5.0  # at the end, for what is still to be said
TYPICAL_TOKENS = 512  # of a session not seen yet: what a claim is expected to need of the cache

_log = structlog.get_logger()


class EngineFailed(Exception):
    """The engine broke or hangs. The process must end, non-zero."""


@dataclass(slots=True)
class _Active:
    """A claim of this worker."""

    claim: Claim
    num_choices: int
    heard_s: float  # when the server last answered for it


class TargetWorker:
    """Serves jobs until it is told to drain.

    Args:
        bus: connected; closed by the caller.
        served: the model, as requests see it.
        engine: not used by anyone else.
        config: settings.
        clock: time.
    """

    def __init__(
        self, bus: Bus, served: Served, engine: Engine, config: Config, clock: Clock
    ) -> None:
        self._bus = bus
        self._served = served
        self._engine = engine
        self._config = config
        self._clock = clock
        self._log = SessionLog(bus)
        self._fleet = Fleet(bus)
        self._queue = JobQueue(bus)
        self._active: dict[tuple[str, int], _Active] = {}
        self._committer = Committer(
            self._log, DraftBoard(bus), answered=self._answered, committed=self._committed
        )
        loop = asyncio.get_running_loop()
        self._handover = Handover(loop, self._committer.push)
        self._thread = EngineThread(engine, self._handover)
        self._pulse = Pulse(lambda: self._thread.num_turns, clock)
        self._intake = Intake(
            self._queue,
            self._log,
            served,
            room=self._room,
            started=self._started,
            submit=self._submit,
            end=self._end,
            clock=clock,
        )
        self._started_ms = clock.unix_ms()
        self._is_draining = asyncio.Event()
        self._is_hurried = asyncio.Event()

    def drain(self) -> None:
        """Stop claiming, finish within the limit, hand back the rest. Twice: hand back at once."""
        (self._is_hurried if self._is_draining.is_set() else self._is_draining).set()

    async def run(self) -> None:
        """Serve until drained. Run at most once.

        Raises:
            EngineFailed: the engine broke or hangs; nothing was handed back, so that a job that
                does this to its workers is counted.
            ConfigError: the server does not let us in any more.
        """
        await self._fleet.beat(self._status())
        self._thread.start()
        _log.info("worker_ready", model=self._served.name, max_model_len=self._served.max_model_len)
        try:
            async with asyncio.TaskGroup() as tasks:
                background = [
                    tasks.create_task(loop())
                    for loop in (
                        self._committer.run,
                        self._hear,
                        self._beat,
                        self._poll_silent,
                        self._watch,
                    )
                ]
                intake = tasks.create_task(self._intake.run())
                await self._is_draining.wait()
                intake.cancel()
                await self._finish()
                for task in background:
                    task.cancel()
        except* (EngineFailed, ConfigError) as failures:
            await self._retire()
            raise _first(failures) from None

    async def _finish(self) -> None:
        """The end of a drain."""
        _log.info("draining", num_jobs=len(self._active), limit_s=self._config.drain_s)
        await self._beat_once()
        await self._until(lambda: not self._active, self._config.drain_s)
        self._handover.stop()
        await self._until(lambda: not self._thread.is_alive(), self._config.hang_s, hurried=False)
        try:
            async with asyncio.timeout(FLUSH_S):
                await asyncio.sleep(0)  # what the engine said last is on its way to the committer
                await self._committer.flushed()
                for active in list(self._active.values()):
                    await self._queue.hand_back(active.claim)
                    _log.info("job_handed_back", job_id=active.claim.job_id)
        except (TimeoutError, Unavailable):
            _log.warning("hand_back_failed", num_jobs=len(self._active))  # they will be rescued
        await self._retire()
        _log.info("drained")

    async def _until(
        self, is_done: Callable[[], bool], limit_s: float, *, hurried: bool = True
    ) -> None:
        ends_s = self._clock.monotonic_s() + limit_s
        while not is_done() and self._clock.monotonic_s() < ends_s:
            if hurried and self._is_hurried.is_set():
                return
            await asyncio.sleep(0.01)

    async def _retire(self) -> None:
        try:
            async with asyncio.timeout(FLUSH_S):
                await self._fleet.retire(self._bus.worker_id)
        except (TimeoutError, Unavailable, ConfigError):
            _log.warning("retire_failed")  # the heartbeat runs out by itself

    def _room(self) -> int:
        """Jobs to take on now: free places, and free blocks for sessions of a usual length."""
        engine = self._engine
        if engine.num_waiting or self._thread.error:
            return 0
        num_sessions = sum(active.num_choices for active in self._active.values())
        free_tokens = engine.num_free_tokens
        num_fitting = max(free_tokens // TYPICAL_TOKENS, int(num_sessions == 0))
        return min(self._config.max_num_seqs - num_sessions, num_fitting)

    def _started(self, claim: Claim, num_choices: int) -> None:
        key = (claim.job_id, claim.epoch)
        self._active[key] = _Active(claim, num_choices, self._clock.monotonic_s())

    def _submit(self, job: AdmittedJob) -> None:
        self._handover.order(lambda engine: engine.submit(job))

    def _end(self, claim: Claim, error: Failed) -> None:
        self._committer.write(claim, error)
        _log.info("job_refused", job_id=claim.job_id, code=error.code, param=error.param)

    def _answered(self, claim: Claim, reply: CommitReply, is_over: bool) -> None:  # noqa: FBT001 -- called by position, named at its definition
        key = (claim.job_id, claim.epoch)
        active = self._active.get(key)
        if active is None:
            return
        active.heard_s = self._clock.monotonic_s()
        if reply.status is not CommitStatus.OK:
            del self._active[key]
            self._handover.order(lambda engine: engine.drop(claim.job_id, epoch=claim.epoch))
            self._queue.drop(claim)  # after the engine: its entry may come again at once
        elif is_over:
            del self._active[key]
            self._queue.ended(claim)
        elif reply.is_cancelled:
            self._handover.order(lambda engine: engine.cancel(claim.job_id))

    def _committed(self, num_outcomes: int) -> None:
        self._handover.committed(num_outcomes)

    async def _hear(self) -> None:
        inbox = Inbox(self._bus)
        while True:
            try:
                messages = await inbox.read(block_s=INBOX_BLOCK_S)
            except Unavailable as error:
                _log.warning("inbox_stuck", reason=error.message)
                await asyncio.sleep(RETRY_S)
                continue
            if messages:
                self._handover.guess(messages, self._clock.monotonic_s())
            cancelled = {item.job_id for item in messages if isinstance(item, CancelNotice)}
            for active in list(self._active.values()) if cancelled else ():
                if active.claim.job_id in cancelled:
                    self._committer.write(active.claim)  # the flag counts, not the notice

    async def _poll_silent(self) -> None:
        """Jobs in prefill or in the queue are not committed, and could not be cancelled else."""
        while True:
            await asyncio.sleep(POLL_S)
            before_s = self._clock.monotonic_s() - POLL_S
            for active in self._active.values():
                if active.heard_s <= before_s:
                    self._committer.write(active.claim)

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(HEARTBEAT_INTERVAL_S)
            if self._pulse.still_s() < self._config.stall_s:
                await self._beat_once()

    async def _beat_once(self) -> None:
        try:
            await self._fleet.beat(self._status())
        except Unavailable as error:
            _log.warning("heartbeat_stuck", reason=error.message)

    async def _watch(self) -> None:
        """End the process when the engine does not go on."""
        while True:
            await asyncio.sleep(min(WATCH_S, self._config.hang_s / 4))
            if self._thread.error is not None:
                raise EngineFailed("the engine broke") from self._thread.error
            if self._thread.is_alive() and self._pulse.still_s() > self._config.hang_s:
                raise EngineFailed(f"a round has taken more than {self._config.hang_s} s")

    def _status(self) -> WorkerStatus:
        engine, totals = self._engine, self._engine.totals
        return WorkerStatus(
            worker_id=self._bus.worker_id,
            role="target",
            model=self._served.name,
            max_model_len=self._served.max_model_len,
            vocab_size=self._served.vocab_size,
            started_ms=self._started_ms,
            is_draining=self._is_draining.is_set(),
            num_running=engine.num_running,
            num_waiting=engine.num_waiting + self._intake.num_pending,
            kv_cache_usage=min(1.0, max(0.0, engine.cache_usage)),
            num_prompt_tokens=totals.num_prompt_tokens,
            num_generation_tokens=totals.num_generation_tokens,
            num_preemptions=engine.num_preemptions,
            speculation=totals.speculation(),
        )


def _first(failures: BaseExceptionGroup[Exception]) -> Exception:
    """The first error in a group of groups."""
    error = failures.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error
