"""From the jobs streams to the engine: fetch with room, claim, check, hand over; rescue orphans.

Each entry that was delivered ends in the engine, in one terminal record, or in the dead-letter
stream; a bad one hurts nobody else.
"""

import asyncio
import random
import secrets
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import structlog

from shared.bus.jobs import Claim, Delivery, JobQueue
from shared.bus.log import SessionLog
from shared.common.clock import Clock
from shared.common.errors import ClientError, ConfigError, PeerError, Unavailable
from shared.protocol.jobs import JobEntry, parse_entry
from shared.protocol.records import Failed, Record
from shared.protocol.requests import ChatRequest, parse_request
from target_worker.admission import Served, admit
from target_worker.admitted import AdmittedJob
from target_worker.engine import CANCELLED, EXPIRED

FETCH_BLOCK_S = 1.0
RESCUE_INTERVAL_S = 1.0
TRIM_EVERY = 16  # rescues
FULL_POLL_S = 0.05  # how often a full worker looks whether there is room again
RETRY_S = 1.0  # after the bus has given up, which takes it a while

_log = structlog.get_logger()

UNPREPARED = Failed("internal_error", "the request could not be prepared")

T = TypeVar("T")


class Intake:
    """One worker's intake. `run` until cancelled; cancelling loses no delivery.

    Args:
        queue: the jobs streams.
        log: to read what an earlier owner wrote.
        served: the model.
        room: how many jobs there is room for now, those in `num_pending` not counted.
        started: called with each claim that becomes ours, before anything else is known of it.
        submit: called with each job that is ready for the engine.
        end: called with a claim and the terminal record of a job that ends here.
        clock: time.
    """

    def __init__(
        self,
        queue: JobQueue,
        log: SessionLog,
        served: Served,
        *,
        room: Callable[[], int],
        started: Callable[[Claim, int], None],
        submit: Callable[[AdmittedJob], None],
        end: Callable[[Claim, Failed], None],
        clock: Clock,
    ) -> None:
        self._queue = queue
        self._log = log
        self._served = served
        self._room = room
        self._started = started
        self._submit = submit
        self._end = end
        self._clock = clock
        self._slow = ThreadPoolExecutor(max_workers=1, thread_name_prefix="admission")
        self._rescue_s = 0.0
        self._num_rescues = 0
        self.num_pending = 0  # delivered, and neither in the engine nor over

    async def run(self) -> None:
        """Take in jobs until cancelled; what has been delivered by then is still settled."""
        async with asyncio.TaskGroup() as settling:
            while True:
                room = self._room() - self.num_pending
                if room <= 0:
                    await asyncio.sleep(FULL_POLL_S)
                    continue
                for delivery in await self._deliveries(room):
                    self.num_pending += 1
                    settling.create_task(self._settle(delivery))

    async def _deliveries(self, room: int) -> list[Delivery]:
        try:
            if self._clock.monotonic_s() >= self._rescue_s:
                rescued = await self._rescue(room)
                if rescued:
                    return rescued
            left_s = max(0.01, self._rescue_s - self._clock.monotonic_s())
            return await self._queue.fetch(room, block_s=min(FETCH_BLOCK_S, left_s))
        except Unavailable as error:
            _log.warning("fetch_stuck", reason=error.message)
            await asyncio.sleep(RETRY_S)
            return []

    async def _rescue(self, room: int) -> list[Delivery]:
        jitter = random.uniform(0.8, 1.2)  # noqa: S311 - spreads load, guards nothing
        self._rescue_s = self._clock.monotonic_s() + RESCUE_INTERVAL_S * jitter
        self._num_rescues += 1
        if self._num_rescues % TRIM_EVERY == 0:
            await self._queue.trim()
        rescued = await self._queue.rescue(room)
        if rescued:
            _log.info("jobs_rescued", num_jobs=len(rescued))
        return rescued

    async def _settle(self, delivery: Delivery) -> None:
        try:
            await self._take(delivery)
        except ConfigError:
            raise  # the whole worker's trouble
        except Exception:  # noqa: BLE001 -- one entry must not end the worker, nor be tried for ever
            _log.exception("delivery_failed", entry_id=delivery.entry_id)
            await _patiently(
                lambda: self._queue.bury(delivery, reason="internal_error", error=UNPREPARED)
            )
        finally:
            self.num_pending -= 1

    async def _take(self, delivery: Delivery) -> None:
        try:
            entry = parse_entry(delivery.entry_id, delivery.fields)
        except ClientError as error:
            reason, failed = f"unreadable: {error.param}", _failed(error)
            await _patiently(lambda: self._queue.bury(delivery, reason=reason, error=failed))
            return
        request = _read_body(entry)
        seed = request.seed if isinstance(request, ChatRequest) else None
        num_choices = request.num_choices if isinstance(request, ChatRequest) else 1
        seed_ = (secrets.randbits(64) if seed is None else seed) & (1 << 64) - 1
        claim = await _patiently(
            lambda: self._queue.claim(delivery, entry, seed=seed_, num_choices=num_choices)
        )
        if claim is None:
            return
        self._started(claim, num_choices)
        outcome = (
            await self._admit(entry, request, claim)
            if isinstance(request, ChatRequest)
            else request
        )
        if isinstance(outcome, Failed):
            self._end(claim, outcome)
        else:
            self._submit(outcome)

    async def _admit(
        self, entry: JobEntry, request: ChatRequest, claim: Claim
    ) -> AdmittedJob | Failed:
        if claim.is_cancelled:
            return CANCELLED
        if entry.deadline_ms is not None and entry.deadline_ms <= self._clock.unix_ms():
            return EXPIRED
        log: list[Record] = []
        try:
            if claim.deliveries > 1 or any(claim.lengths):
                entries = await _patiently(lambda: self._log.read(claim.job_id))
                log = [record for _, record in entries]
            return await asyncio.get_running_loop().run_in_executor(
                self._slow, admit, entry, request, claim, self._served, log
            )
        except ClientError as error:
            return _failed(error)
        except PeerError as error:
            _log.error("log_unusable", job_id=claim.job_id, reason=str(error))
            return Failed("log_unusable", str(error))
        except ConfigError:
            raise
        except Exception:  # noqa: BLE001 -- what a body makes a template raise ends this job alone
            _log.exception("admission_failed", job_id=claim.job_id)
            return UNPREPARED


def _read_body(entry: JobEntry) -> ChatRequest | Failed:
    try:
        return parse_request(entry.body)
    except ClientError as error:
        return _failed(error)


def _failed(error: ClientError) -> Failed:
    return Failed(error.code, error.message, error.param, error.status)


async def _patiently(call: Callable[[], Awaitable[T]]) -> T:
    """The answer of a call that is safe to repeat, however long the server is away."""
    while True:
        try:
            return await call()
        except Unavailable as error:
            _log.warning("server_stuck", reason=error.message)
            await asyncio.sleep(RETRY_S)
