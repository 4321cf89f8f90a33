"""The engine thread and its hand-over: bounded, awake when needed, honest about its end."""

import asyncio
import threading
from collections.abc import Sequence

from torch import Tensor

from shared.engine.spans import Span
from shared.protocol.messages import DraftPath
from shared.protocol.records import Done
from target_worker.engine_thread import EngineThread
from target_worker.handover import MAX_UNCOMMITTED_ROUNDS, MAX_WAITING_BATCHES, Handover
from target_worker.outcome import Outcome
from tests.bus_worker import until
from tests.target_worker.engines import Rig, make_job, make_rig, reference, tokens_of


class Bench:
    """A thread under test and what it has delivered."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.said = Outcome()
        self.num_outcomes = 0
        self.handover = Handover(asyncio.get_running_loop(), self._take)
        self.thread = EngineThread(rig.engine, self.handover)

    def _take(self, outcome: Outcome) -> None:
        self.said.merge(outcome)
        self.num_outcomes += 1

    async def stop(self) -> None:
        self.handover.stop()
        await asyncio.to_thread(self.thread.join)


def is_done(bench: Bench) -> bool:
    return any(isinstance(r[-1], Done) for _, r in bench.said.records.values() if r)


async def test_a_job_is_served_while_commits_keep_up() -> None:
    """Ordered from the loop, run in the thread, delivered to the loop."""
    bench = Bench(make_rig())
    job = make_job(max_tokens=40)
    bench.thread.start()
    bench.handover.order(lambda engine: engine.submit(job))

    async def committed() -> bool:
        bench.handover.committed(bench.num_outcomes)
        bench.num_outcomes = 0
        return is_done(bench)

    await until(committed)
    await bench.stop()
    records = bench.said.records["job", 1][1]
    assert tokens_of(records) == reference(bench.rig, job)
    assert bench.thread.error is None


async def test_the_engine_waits_when_commits_are_stuck() -> None:
    """A few rounds ahead, no more; the loop still turns, and a commit sets it going again."""
    bench = Bench(make_rig())
    bench.handover.order(lambda engine: engine.submit(make_job(max_tokens=40)))
    bench.thread.start()

    async def is_full() -> bool:
        return bench.handover.is_full and bench.num_outcomes >= MAX_UNCOMMITTED_ROUNDS

    await until(is_full)
    turns = bench.thread.num_turns

    async def has_turned() -> bool:
        return bench.thread.num_turns > turns + 1

    await until(has_turned)
    assert bench.num_outcomes == MAX_UNCOMMITTED_ROUNDS
    bench.handover.committed(1)

    async def went_on() -> bool:
        return bench.num_outcomes == MAX_UNCOMMITTED_ROUNDS + 1

    await until(went_on)
    await bench.stop()


async def test_guesses_that_nobody_takes_give_way() -> None:
    """A flood while the engine is busy costs bounded memory."""
    bench = Bench(make_rig())
    for index in range(10 * MAX_WAITING_BATCHES):
        bench.handover.guess([DraftPath("job/0", index, (1,))], 0.0)
    assert len(bench.handover._guesses) == MAX_WAITING_BATCHES


async def test_a_broken_engine_ends_the_thread_with_its_error() -> None:
    """Whatever it was is there for the worker to see."""

    class Broken:
        def run(self, spans: Sequence[Span]) -> Tensor:
            raise RuntimeError(f"no device for {len(spans)} spans")

        def copy_blocks(self, copies: Sequence[tuple[int, int]]) -> None:
            raise AssertionError(copies)

    def fail() -> None:
        Broken().run([])

    rig = make_rig(wrap=lambda _: Broken())
    rig.engine._rounds._self_test = fail
    bench = Bench(rig)
    bench.handover.order(lambda engine: engine.submit(make_job()))
    bench.thread.start()
    await asyncio.to_thread(bench.thread.join)
    assert bench.thread.error is not None


def test_a_closed_loop_ends_the_thread() -> None:
    """An outcome that nobody can take is not an error."""

    async def make() -> Bench:
        return Bench(make_rig())

    bench = asyncio.run(make())
    bench.handover.order(lambda engine: engine.submit(make_job()))
    thread = threading.Thread(target=bench.thread.run)
    thread.start()
    thread.join(timeout=20.0)
    assert not thread.is_alive()
    assert bench.thread.error is None


async def test_who_posts_without_end_does_not_hold_up_the_next_round() -> None:
    """What is there is taken in; what comes meanwhile is for the next time."""
    handover = Handover(asyncio.get_running_loop(), lambda _: None)
    rig = make_rig()
    num_taken = 0

    def post_another(_: object) -> None:
        nonlocal num_taken
        num_taken += 1
        handover.order(post_another)

    handover.order(post_another)
    handover.take(rig.engine)
    assert num_taken == 1
    handover.take(rig.engine)
    assert num_taken == 2
