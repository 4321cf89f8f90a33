"""The session log against a model: any order of claims, appends, deaths, repeats and cancellations.

The model is what docs/protocol.md promises, in plain Python; the server is real.
"""

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, assume, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from shared.bus.connection import Bus
from shared.bus.jobs import Claim, Delivery
from shared.bus.log import Append, CommitStatus
from shared.protocol.jobs import JobState
from shared.protocol.keys import TARGET_GROUP, Keys
from shared.protocol.limits import LEASE_S, MAX_DELIVERIES
from shared.protocol.records import Done, Failed, Finished, FinishReason, Record, Tokens
from tests.bus_worker import BusWorker, done, tokens, until
from tests.server import Server

pytestmark = [pytest.mark.server, pytest.mark.slow]

WORKERS = ("target:a", "target:b", "target:c")
JOBS = ("j0", "j1")
T = TypeVar("T")


@dataclass
class Job:
    """What the model knows of one job."""

    num_choices: int
    state: JobState | None = None
    epoch: int = 0
    deliveries: int = 0
    is_cancelled: bool = False
    holder: str | None = None  # worker at which the entry is pending; None: undelivered
    is_urgent: bool = False  # handed back: queued again, ahead of the others
    log: list[Record] = field(default_factory=list)
    last: tuple[int, tuple[Record, ...]] | None = None  # epoch and records of the last append

    @property
    def is_over(self) -> bool:
        return self.state in (JobState.DONE, JobState.FAILED)

    def length(self, choice: int) -> int:
        mine = (r for r in self.log if isinstance(r, Tokens) and r.choice == choice)
        return sum(len(record.token_ids) for record in mine)

    def open_choices(self) -> list[int]:
        over = {record.choice for record in self.log if isinstance(record, Finished | Done)}
        return [choice for choice in range(self.num_choices) if choice not in over]

    def commit(self, epoch: int, records: tuple[Record, ...], *, fits: bool) -> CommitStatus:
        """What the server has to answer, and what it has to do."""
        if epoch != self.epoch:
            return CommitStatus.FENCED
        if records and self.last == (epoch, records):
            return CommitStatus.OK
        if self.is_over:
            return CommitStatus.GONE
        if not fits:
            return CommitStatus.CONFLICT
        self.log += records
        if records:
            self.last = (epoch, records)
        if records and isinstance(records[-1], Done | Failed):
            self.state = JobState.DONE if isinstance(records[-1], Done) else JobState.FAILED
            self.holder = None
        return CommitStatus.OK


class SessionLogMachine(RuleBasedStateMachine):
    """Three workers, two jobs."""

    url = ""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.workers: dict[str, BusWorker] = {}
        self.alive = dict.fromkeys(WORKERS, True)
        self.jobs: dict[str, Job] = {}
        self.deliveries: dict[tuple[str, str], Delivery] = {}  # by worker and job: not claimed yet
        self.claims: dict[tuple[str, str], Claim] = {}  # the newest one that a worker believes in

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(work)

    @initialize(num_choices=st.tuples(*(st.integers(1, 2) for _ in JOBS)))
    def begin(self, num_choices: tuple[int, ...]) -> None:
        """Three live workers, two jobs waiting."""
        self.run(self._connect())
        for name, number in zip(JOBS, num_choices, strict=True):
            self.jobs[name] = Job(number)
            self.submit(name)

    async def _connect(self) -> None:
        for worker_id in WORKERS:
            bus = await Bus.connect(self.url, keys=Keys(), worker_id=worker_id)
            if not self.workers:
                await bus.call("FLUSHALL")
            self.workers[worker_id] = await BusWorker.start(bus)

    def teardown(self) -> None:
        for worker in self.workers.values():
            self.run(worker.bus.close())
        self.runner.close()

    @rule(name=st.sampled_from(JOBS))
    def submit(self, name: str) -> None:
        """A second time: nothing happens."""
        self.run(self.workers["target:a"].submit(name))

    @rule(worker=st.sampled_from(WORKERS), count=st.integers(1, 2))
    def fetch(self, worker: str, count: int) -> None:
        """The undelivered entries, handed-back ones first, and only to a live worker."""
        waiting = [(not job.is_urgent, name) for name, job in self._undelivered()]
        expected = len(waiting[:count]) if self.alive[worker] else 0
        deliveries = self.run(self.workers[worker].fetch(count))
        assert len(deliveries) == expected
        urgent_first = [not self.jobs[self._job(delivery)].is_urgent for delivery in deliveries]
        assert urgent_first == sorted(urgent for urgent, _ in waiting)[:expected]
        self._hold(worker, deliveries)

    @rule(worker=st.sampled_from(WORKERS))
    def rescue(self, worker: str) -> None:
        """Everything that is pending at dead workers, and nothing else."""
        dead = {name for name, alive in self.alive.items() if not alive and name != worker}
        lost = {name for name, job in self.jobs.items() if job.holder in dead and not job.is_over}
        deliveries = self.run(self.workers[worker].jobs.rescue(9))
        assert {self._job(d) for d in deliveries} == (lost if self.alive[worker] else set())
        self._hold(worker, deliveries)

    @rule(worker=st.sampled_from(WORKERS))
    def take(self, worker: str) -> None:
        """The usual case: fetch and claim at once."""
        self.fetch(worker, 1)
        for name in JOBS:
            if (worker, name) in self.deliveries:
                self._claim(worker, name)

    @rule(name=st.sampled_from(JOBS), worker=st.sampled_from(WORKERS), is_back=st.booleans())
    def take_over(self, name: str, worker: str, *, is_back: bool) -> None:
        """A worker dies with a job, another one takes it; the first may wake up later."""
        job = self.jobs[name]
        dead = job.holder
        assume(dead is not None and dead != worker and not job.is_over)
        assert dead is not None
        if self.alive[dead]:
            self.die_or_come_back(dead)
        if not self.alive[worker]:
            self.die_or_come_back(worker)
        self.rescue(worker)
        self._claim(worker, name)
        if is_back:
            self.die_or_come_back(dead)

    @precondition(lambda self: self.deliveries)
    @rule(data=st.data())
    def claim(self, data: st.DataObject) -> None:
        """Own what was delivered, unless somebody else holds it by now."""
        self._claim(*data.draw(st.sampled_from(sorted(self.deliveries))))

    def _claim(self, worker: str, name: str) -> None:
        delivery, job = self.deliveries.pop((worker, name)), self.jobs[name]
        claim = self.run(self.workers[worker].claim(delivery, num_choices=job.num_choices))
        if job.holder != worker or job.is_over:
            assert claim is None
            return
        job.deliveries += 1
        if job.deliveries > MAX_DELIVERIES:
            assert claim is None
            self._bury(name, job)
            return
        job.state, job.epoch = JobState.RUNNING, job.epoch + 1
        assert claim is not None
        assert (claim.job_id, claim.epoch, claim.deliveries) == (name, job.epoch, job.deliveries)
        assert claim.is_cancelled == job.is_cancelled
        assert claim.lengths == tuple(job.length(choice) for choice in range(job.num_choices))
        self.claims[worker, name] = claim

    def _bury(self, name: str, job: Job) -> None:
        records = self.run(self.workers["target:a"].records(name))
        assert isinstance(records[-1], Failed)
        assert records[-1].code == "too_many_deliveries"
        job.log.append(records[-1])
        job.state, job.holder = JobState.FAILED, None

    @precondition(lambda self: self.claims)
    @rule(data=st.data(), num_tokens=st.integers(1, 3), slip=st.sampled_from([0, 0, 0, -1, 1]))
    def append(self, data: st.DataObject, num_tokens: int, slip: int) -> None:
        """Tokens at the right offset, or one off; by the owner, or by one who was."""
        claim, job = self._draw(data)
        choice = data.draw(st.integers(0, job.num_choices - 1))
        offset = job.length(choice) + slip
        assume(offset >= 0)
        record = tokens(offset, *range(offset, offset + num_tokens), choice=choice)
        self._commit(claim, job, (record,), fits=slip == 0 and choice in job.open_choices())

    @precondition(lambda self: self.claims)
    @rule(data=st.data())
    def repeat(self, data: st.DataObject) -> None:
        """The last append once more, as after a lost reply, by whoever believes to own the job."""
        claim, job = self._draw(data)
        assume(job.last is not None)
        assert job.last is not None
        self._commit(claim, job, job.last[1], fits=False)

    @precondition(lambda self: self.claims)
    @rule(data=st.data(), is_failure=st.booleans())
    def finish(self, data: st.DataObject, *, is_failure: bool) -> None:
        """End a choice, with the last one the job; or give the job up."""
        claim, job = self._draw(data)
        choices = job.open_choices() or [0]
        record: Record = Finished(choices[0], "rest", FinishReason.LENGTH)
        if is_failure:
            record = Failed("cancelled", "the client left", None, 499)
        elif len(choices) == 1:
            record = done(choice=choices[0], num_choices=job.num_choices)
        self._commit(claim, job, (record,), fits=bool(job.open_choices()))

    @precondition(lambda self: self.claims)
    @rule(data=st.data())
    def ask(self, data: st.DataObject) -> None:
        """An empty append asks for the cancel flag."""
        claim, job = self._draw(data)
        self._commit(claim, job, (), fits=True)

    @precondition(lambda self: self.claims)
    @rule(data=st.data())
    def hand_back(self, data: st.DataObject) -> None:
        """The owner queues the job again; nobody else can."""
        claim, job = self._draw(data)
        worker = self.workers[self._believer(claim)]
        self.run(worker.jobs.hand_back(claim))
        if job.state is JobState.RUNNING and claim.epoch == job.epoch:
            job.epoch, job.deliveries = job.epoch + 1, job.deliveries - 1
            job.holder, job.is_urgent = None, True

    @rule(job=st.sampled_from(JOBS))
    def cancel(self, job: str) -> None:
        """Takes while the job is not over."""
        model = self.jobs[job]
        assert self.run(self.workers["target:a"].log.cancel(job)) == (not model.is_over)
        model.is_cancelled |= not model.is_over

    @rule(worker=st.sampled_from(WORKERS))
    def die_or_come_back(self, worker: str) -> None:
        """A worker loses its heartbeat, or has it again, and believes what it believed before."""
        self.alive[worker] = not self.alive[worker]
        actor = self.workers[worker]
        self.run(actor.beat() if self.alive[worker] else actor.die())

    @invariant()
    def the_logs_are_the_models(self) -> None:
        """No gap, no rewrite, nothing of a fenced writer, one end and that last."""
        for name, job in self.jobs.items():
            records = self.run(self.workers["target:a"].records(name))
            assert records == job.log
            ends = [index for index, r in enumerate(records) if isinstance(r, Done | Failed)]
            assert ends == ([len(records) - 1] if job.is_over else [])

    @invariant()
    def an_acked_job_has_ended(self) -> None:
        """Every unfinished job is still queued or pending at the worker that holds it."""
        if self.workers:
            pending = self.run(self._pending())
            held = {job.holder: 0 for job in self.jobs.values() if job.holder}
            for job in self.jobs.values():
                if job.holder:
                    held[job.holder] += 1
            assert pending == held
            waiting = self.run(self.workers["target:a"].jobs.waiting())
            assert waiting == len(self._undelivered())

    async def _pending(self) -> dict[str, int]:
        bus = self.workers["target:a"].bus
        counts: dict[str, int] = {}
        for stream in bus.keys.all_jobs:
            (reply,) = await bus.execute([("XPENDING", stream, TARGET_GROUP)])
            for name, count in (reply[3] or []) if isinstance(reply, list) else []:
                counts[name.decode()] = counts.get(name.decode(), 0) + int(count)
        return counts

    def _undelivered(self) -> list[tuple[str, Job]]:
        return [
            (name, job) for name, job in self.jobs.items() if job.holder is None and not job.is_over
        ]

    def _job(self, delivery: Delivery) -> str:
        return delivery.fields[b"id"].decode()

    def _hold(self, worker: str, deliveries: list[Delivery]) -> None:
        for delivery in deliveries:
            name = self._job(delivery)
            self.jobs[name].holder = worker
            self.deliveries[worker, name] = delivery

    def _draw(self, data: st.DataObject) -> tuple[Claim, Job]:
        key = data.draw(st.sampled_from(sorted(self.claims)))
        return self.claims[key], self.jobs[key[1]]

    def _believer(self, claim: Claim) -> str:
        return next(worker for (worker, _), held in self.claims.items() if held is claim)

    def _commit(self, claim: Claim, job: Job, records: tuple[Record, ...], *, fits: bool) -> None:
        log = self.workers[self._believer(claim)].log
        expected = job.commit(claim.epoch, records, fits=fits)
        (reply,) = self.run(log.commit([Append(claim, records)]))
        assert (reply.status, reply.is_cancelled) == (expected, job.is_cancelled)


async def _has_settled(bus: Bus) -> bool:
    info: bytes = await bus.call("INFO", "server")
    return int(info.split(b"uptime_in_seconds:")[1].split()[0]) >= LEASE_S


async def _wait_for_server(url: str) -> None:
    bus = await Bus.connect(url, keys=Keys(), worker_id="target:test")
    await until(lambda: _has_settled(bus))  # before, it lets nobody be robbed
    await bus.close()


def test_any_history_keeps_the_promises(valkey_server: Server) -> None:
    """Hypothesis looks for a history that the model and the server tell differently."""
    asyncio.run(_wait_for_server(valkey_server.url))
    SessionLogMachine.url = valkey_server.url
    run_state_machine_as_test(
        SessionLogMachine,
        settings=settings(
            max_examples=60,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
