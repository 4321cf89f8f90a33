"""The draft worker: the drafting thread between its inboxes and outboxes.

Everything here is soft state. Without the server the thread goes on with what it has, and the bus
keeps trying; a session whose target has gone is dropped after a while.
"""

import asyncio

import structlog

from draft_worker.config import Config
from draft_worker.equipment import Equipment
from draft_worker.loop import DraftLoop
from draft_worker.outbox import Outbox
from draft_worker.service import DraftService, Mail
from shared.bus.connection import Bus
from shared.bus.fleet import Fleet
from shared.bus.mail import DraftBoard, Inbox
from shared.common.clock import Clock
from shared.common.errors import Unavailable
from shared.protocol.limits import HEARTBEAT_INTERVAL_S
from shared.protocol.messages import DraftClosed, DraftRequest, Verdict
from shared.protocol.workers import WorkerStatus

_BLOCK_S = 1.0  # of a read without news; only the first one after a silence takes so long
_FULL_PAUSE_S = 0.05  # until a full worker looks for a free seat again
_NUM_SENDERS = 2  # one may wait for the server's reply while the other sends what came since
_STOP_S = 2.0  # for a step in progress, and again for the last messages
_MAX_FETCH = 16  # requests taken at once: others may have room too
_MAX_LOGGED_VOCABULARIES = 16

_log = structlog.get_logger()


class EngineFailed(Exception):
    """The drafting thread ended or hangs: this process is of no use any more."""


class DraftWorker:
    """One process's work. Make it inside a running event loop; `run` at most once."""

    def __init__(self, bus: Bus, equipment: Equipment, config: Config, clock: Clock) -> None:
        self._bus = bus
        self._equipment = equipment
        self._config = config
        self._clock = clock
        self._started_ms = clock.unix_ms()
        self._outbox = Outbox(bus)
        self._fleet = Fleet(bus)
        self._stopping = asyncio.Event()
        self._foreign: set[str] = set()  # vocabularies that were logged
        self._service = DraftService(
            equipment.drafter,
            draft_id=bus.worker_id,
            clock=clock,
            session_timeout_s=config.session_timeout_s,
        )
        aio = asyncio.get_running_loop()

        def emit(mail: Mail) -> None:
            try:
                aio.call_soon_threadsafe(self._outbox.put, mail)
            except RuntimeError:  # a step that hung has outlived the event loop: nobody can be told
                _log.warning("mail_after_the_end", num_targets=len(mail))

        self._loop = DraftLoop(self._service, emit=emit, clock=clock)

    def stop(self) -> None:
        """Begin to end: `run` closes all sessions and returns."""
        self._stopping.set()

    async def run(self) -> None:
        """Draft until `stop`, then tell the targets and retire.

        Raises:
            EngineFailed: the thread has ended, or may still hang.
        """
        self._loop.start()
        try:
            await self._serve()
        except* EngineFailed as failures:
            self._loop.stop(timeout_s=0.0)  # should the hanging step end after all
            raise failures.exceptions[0] from None
        await self._leave()

    async def _serve(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            jobs = [
                tasks.create_task(self._read_inbox()),
                tasks.create_task(self._fetch_requests()),
                tasks.create_task(self._beat()),
                *(tasks.create_task(self._outbox.run()) for _ in range(_NUM_SENDERS)),
            ]
            await self._stopping.wait()
            for job in jobs:
                job.cancel()

    async def _read_inbox(self) -> None:
        inbox = Inbox(self._bus)
        while True:
            try:
                messages = await inbox.read(block_s=_BLOCK_S)
            except Unavailable as error:
                _log.warning("server_away", reason=str(error))
                continue
            for message in messages:
                if isinstance(message, Verdict | DraftClosed):
                    self._loop.post(message)

    async def _fetch_requests(self) -> None:
        board = DraftBoard(self._bus)
        while True:
            num_free = min(self._loop.num_free, _MAX_FETCH)
            if num_free <= 0:
                await asyncio.sleep(_FULL_PAUSE_S)
                continue
            try:
                requests = await board.fetch(num_free, block_s=_BLOCK_S)
            except Unavailable as error:
                _log.warning("server_away", reason=str(error))
                continue
            for request in requests:
                if self._is_known(request):
                    self._loop.post(request)

    async def _beat(self) -> None:
        while True:
            if not self._loop.is_alive:
                raise EngineFailed("the drafting thread has ended") from self._loop.error
            stalled_s = self._loop.stalled_s
            if stalled_s > self._config.hang_timeout_s:
                raise EngineFailed(f"no step has ended for {stalled_s:.1f} s")
            if stalled_s < 2 * HEARTBEAT_INTERVAL_S:
                try:
                    await self._fleet.beat(self._status())
                except Unavailable as error:
                    _log.warning("heartbeat_failed", reason=str(error))
            await asyncio.sleep(HEARTBEAT_INTERVAL_S)

    async def _leave(self) -> None:
        _log.info("worker_stopping", num_sessions=self._service.num_sessions)
        try:
            async with asyncio.timeout(2 * _STOP_S):
                await asyncio.to_thread(self._loop.stop, _STOP_S)
                await self._outbox.flush()
                await self._fleet.retire(self._bus.worker_id)
            _log.info("worker_stopped", **{f"num_{k}": n for k, n in self._service.counts.items()})
        except (TimeoutError, Unavailable) as error:
            _log.warning("retire_failed", reason=str(error))

    def _is_known(self, request: DraftRequest) -> bool:
        vocabulary = self._equipment.vocabulary
        if vocabulary is None or request.vocabulary == vocabulary:
            return True
        is_new = request.vocabulary not in self._foreign
        if is_new and len(self._foreign) < _MAX_LOGGED_VOCABULARIES:
            self._foreign.add(request.vocabulary)
            _log.warning("draft_vocabulary_unknown", vocabulary=request.vocabulary[:64])
        return False

    def _status(self) -> WorkerStatus:
        return WorkerStatus(
            worker_id=self._bus.worker_id,
            role="draft",
            model=self._equipment.name,
            max_model_len=self._equipment.max_model_len,
            vocab_size=self._equipment.vocab_size,
            started_ms=self._started_ms,
            is_draining=self._stopping.is_set(),
            num_running=self._service.num_sessions,
            kv_cache_usage=self._service.usage,
        )
