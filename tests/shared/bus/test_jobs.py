"""The queue of jobs on a real server: order, ownership, takeover, hand-back, dead letters."""

import asyncio
import contextlib

import pytest

from shared.bus.connection import Bus
from shared.bus.jobs import Claim, Delivery, JobQueue
from shared.common.errors import ClientError
from shared.protocol.jobs import JobEntry, parse_entry
from shared.protocol.keys import TARGET_GROUP, Priority
from tests.bus_worker import SEED, BusWorker, done, tokens, until
from tests.server import Server
from tests.shared.bus.conftest import StartWorker

pytestmark = pytest.mark.server


def entry(job_id: str, **fields: str) -> JobEntry:
    return JobEntry(job_id=job_id, body=b'{"model": "m"}', **fields)  # type: ignore[arg-type] # strings only


async def test_urgent_jobs_come_first_and_never_more_than_asked(worker: BusWorker) -> None:
    """High before normal before low, oldest first, at most `count`."""
    for priority in (Priority.LOW, Priority.NORMAL, Priority.HIGH):
        for number in range(2):
            await worker.jobs.submit(entry(f"{priority}{number}"), priority)
    taken = [
        [delivery.fields[b"id"].decode() for delivery in await worker.fetch(count)]
        for count in (3, 0, 1, 9)
    ]
    assert taken == [["high0", "high1", "normal0"], [], ["normal1"], ["low0", "low1"]]


async def test_a_fetch_waits_for_the_first_job(worker: BusWorker, other: BusWorker) -> None:
    """A blocked fetch wakes up as soon as a job is queued, in whichever stream."""
    async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
        fetch = tasks.create_task(worker.jobs.fetch(4, block_s=9.0))
        await until(lambda: _is_blocked(other))
        await other.jobs.submit(entry("j"), Priority.LOW)
    (delivery,) = fetch.result()
    assert parse_entry(delivery.entry_id, delivery.fields) == entry("j")


async def _is_blocked(worker: BusWorker) -> bool:
    clients: bytes = await worker.bus.call("INFO", "clients")
    return b"blocked_clients:0" not in clients


async def test_a_fetch_without_work_ends_in_time(worker: BusWorker) -> None:
    """Nothing after `block_s`, and no busy loop meanwhile: one look before the wait, one after."""
    calls = await _num_calls(worker)
    assert await worker.jobs.fetch(1, block_s=0.3) == []
    assert await _num_calls(worker) - calls == 2


async def _num_calls(worker: BusWorker) -> int:
    info: bytes = await worker.bus.call("INFO", "commandstats")
    return int(info.split(b"cmdstat_fcall:calls=")[1].split(b",")[0])


async def test_a_cancelled_fetch_loses_nothing(worker: BusWorker) -> None:
    """Whenever the caller gives up, every job comes out of the next fetches exactly once."""
    seen: list[str] = []
    for number in range(40):
        await worker.submit(f"j{number}")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.0002 * (number % 8)):
                seen += [d.entry_id for d in await worker.jobs.fetch(1, block_s=1.0)]
    while deliveries := await worker.fetch(7):
        seen += [delivery.entry_id for delivery in deliveries]
    assert len(seen) == len(set(seen)) == 40


async def test_fetches_and_rescues_side_by_side_give_each_job_once(
    worker: BusWorker, other: BusWorker
) -> None:
    """A process may look for abandoned jobs while it fetches new ones, interrupted in both."""
    for number in range(60):
        await other.submit(f"j{number}")
    assert len(await other.fetch(30)) == 30
    await until(lambda: _uptime_is_enough(worker))
    await other.die()
    seen: list[str] = []

    async def look(*, is_rescue: bool) -> None:
        for number in range(60):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.0005 * (number % 5)):
                    got = worker.jobs.rescue(1) if is_rescue else worker.jobs.fetch(1, block_s=0.0)
                    seen.extend([delivery.entry_id for delivery in await got])

    await asyncio.gather(look(is_rescue=True), look(is_rescue=False))
    while more := [*await worker.fetch(9), *await worker.jobs.rescue(9)]:
        seen.extend([delivery.entry_id for delivery in more])
    assert len(seen) == len(set(seen)) == 60


async def test_a_worker_without_a_heartbeat_gets_nothing(worker: BusWorker) -> None:
    """It would lose the job to a rescuer at once; with the heartbeat back it gets the job."""
    await worker.submit("j")
    await worker.die()
    assert await worker.jobs.fetch(1, block_s=0.1) == []
    await worker.beat()
    assert len(await worker.fetch()) == 1


async def test_a_restarted_process_finds_what_it_held(worker: BusWorker) -> None:
    """Entries pending under its name are given out once, before new ones."""
    for job_id in ("old", "new"):
        await worker.submit(job_id)
    await worker.fetch(1)
    queue = JobQueue(worker.bus)
    found = [d.fields[b"id"] for _ in range(2) for d in await queue.fetch(1, block_s=0.0)]
    assert found == [b"old", b"new"]
    assert await queue.fetch(9, block_s=0.0) == []


async def test_an_entry_deleted_by_somebody_is_dropped(worker: BusWorker) -> None:
    """What is pending but not there any more is acked, not waited for."""
    entry_id = await worker.submit("j")
    await worker.fetch()
    await worker.bus.call("XDEL", worker.bus.keys.jobs(), entry_id)
    assert await JobQueue(worker.bus).fetch(1, block_s=0.0) == []
    assert await worker.num_pending() == 0


async def test_a_job_submitted_twice_is_one_job(worker: BusWorker) -> None:
    """The same id and body: one entry. The same id with another body: an error that says so."""
    first = await worker.jobs.submit(entry("j"))
    assert await worker.jobs.submit(entry("j")) == first
    assert await worker.bus.call("XLEN", worker.bus.keys.jobs()) == 1
    with pytest.raises(ClientError, match="another request") as caught:
        await worker.jobs.submit(JobEntry(job_id="j", body=b"other"))
    assert (caught.value.status, caught.value.code, caught.value.param) == (409, "id_reused", "id")


async def test_a_second_raw_entry_of_a_job_is_dropped(worker: BusWorker) -> None:
    """Two XADDs with one idempotency key: one job; the second entry is acked away."""
    fields = ("idem", "key-1", "body", "{}")
    for _ in range(2):
        await worker.bus.call("XADD", worker.bus.keys.jobs(), "*", *fields)
    first, second = await worker.fetch(2)
    claim = await worker.claim(first)
    assert claim is not None
    assert await worker.claim(second) is None
    assert await worker.num_pending() == 1
    await worker.append(claim, done())
    await worker.bus.call("XADD", worker.bus.keys.jobs(), "*", *fields)
    (third,) = await worker.fetch()
    assert await worker.claim(third) is None
    assert await worker.num_pending() == 0


async def test_a_raw_entry_is_a_job_named_after_itself(worker: BusWorker) -> None:
    """`XADD jobs * body …` is enough; gateway, tenant and deadline are remembered at the claim."""
    raw = ("body", "{}", "tenant", "t", "reply", "gateway:g", "deadline_ms", "99")
    entry_id: bytes = await worker.bus.call("XADD", worker.bus.keys.jobs(), "*", *raw)
    claim = await worker.take()
    assert claim.job_id == entry_id.decode()
    info = await worker.log.info(claim.job_id)
    assert info is not None
    assert (info.body, info.tenant, info.reply) == (b"{}", "t", "gateway:g")


async def test_the_seed_is_recorded_once(worker: BusWorker, other: BusWorker) -> None:
    """All 64 bits survive, and a second owner gets the first one's."""
    await worker.submit("j")
    assert (await worker.take()).seed == SEED
    await worker.die()
    (delivery,) = await other.rescue()
    job = parse_entry(delivery.entry_id, delivery.fields)
    claim = await other.jobs.claim(delivery, job, seed=7, num_choices=1)
    assert claim is not None
    assert claim.seed == SEED


async def test_what_another_worker_rescued_cannot_be_claimed(
    worker: BusWorker, other: BusWorker
) -> None:
    """A worker that slept between fetch and claim leaves the job to its new owner."""
    await worker.submit("j")
    (delivery,) = await worker.fetch()
    await worker.die()
    (rescued,) = await other.rescue()
    assert await other.claim(rescued) is not None
    assert await worker.claim(delivery) is None
    info = await other.log.info("j")
    assert info is not None
    assert (info.owner, info.epoch) == ("target:b", 1)


async def test_only_the_dead_are_robbed(worker: BusWorker, other: BusWorker) -> None:
    """However long an entry is pending, it stays with a worker that has a heartbeat."""
    await worker.submit("j")
    claim = await worker.take()
    await until(lambda: _uptime_is_enough(worker))
    stream, entry_id = claim.stream, claim.entry_id
    hour_ms = ("IDLE", 3_600_000, "JUSTID")
    await worker.bus.call("XCLAIM", stream, TARGET_GROUP, "target:a", 0, entry_id, *hour_ms)
    assert await other.jobs.rescue(9) == []
    await worker.die()
    assert [d.entry_id for d in await other.jobs.rescue(9)] == [entry_id]
    await other.die()
    assert await other.jobs.rescue(9) == []


async def _uptime_is_enough(worker: BusWorker) -> bool:
    info: bytes = await worker.bus.call("INFO", "server")
    return int(info.split(b"uptime_in_seconds:")[1].split()[0]) >= 4


async def test_a_server_that_just_started_robs_nobody(
    start_worker: StartWorker, own_server: Server
) -> None:
    """After a restart the heartbeats are gone, not the workers: for one lease nothing is taken."""
    worker = await start_worker("target:a", url=own_server.url)
    other = await start_worker("target:b", url=own_server.url)
    await worker.submit("j")
    await worker.take()
    own_server.restart()
    await worker.die()
    await other.beat()
    assert await other.jobs.rescue(1) == []
    await other.beat()
    await until(lambda: _uptime_is_enough(other))
    await other.beat()
    assert len(await other.jobs.rescue(1)) == 1


async def test_two_rescuers_share_what_is_left(start_worker: StartWorker) -> None:
    """Racing rescuers get every entry once between them."""
    dead, *rescuers = [await start_worker(f"target:{name}") for name in "abc"]
    for number in range(30):
        await dead.submit(f"j{number}")
    assert len(await dead.fetch(30)) == 30
    await dead.die()
    await until(lambda: _uptime_is_enough(dead))
    takes: list[list[Delivery]] = []
    for _ in range(6):
        takes += await asyncio.gather(*(rescuer.jobs.rescue(3) for rescuer in rescuers))
    entries = [delivery.entry_id for deliveries in takes for delivery in deliveries]
    assert len(entries) == len(set(entries)) == 30


async def test_a_job_handed_back_wakes_the_next_worker(worker: BusWorker, other: BusWorker) -> None:
    """At once, ahead of the queue, with its seed and log, and without counting as a delivery."""
    await worker.submit("j", tenant="t")
    claim = await worker.take()
    await worker.append(claim, tokens(0, 1))
    async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
        fetch = tasks.create_task(other.jobs.fetch(1, block_s=9.0))
        await until(lambda: _is_blocked(other))
        await worker.jobs.hand_back(claim)
    (delivery,) = fetch.result()
    taken = await other.claim(delivery)
    assert taken is not None
    assert (taken.job_id, taken.deliveries, taken.lengths, taken.seed) == ("j", 1, (1,), SEED)
    assert parse_entry(delivery.entry_id, delivery.fields).tenant == "t"
    assert (await worker.append(claim, tokens(1, 2))).status == "fenced"
    await worker.jobs.hand_back(claim)  # a repeat, too late: nothing happens
    assert (await other.append(taken, tokens(1, 2))).status == "ok"
    assert await worker.num_pending() == 1


async def test_finished_entries_are_trimmed_and_the_lag_stays_a_number(worker: BusWorker) -> None:
    """Trimming stops before the oldest unfinished entry; autoscaling still reads the lag."""
    for number in range(6):
        await worker.submit(f"j{number}")
    claims: list[Claim] = [await worker.take() for _ in range(4)]
    await worker.append(claims[0], done())
    await worker.append(claims[2], done())
    await worker.jobs.trim()
    stream = worker.bus.keys.jobs()
    assert await worker.bus.call("XLEN", stream) == 5  # only j0: j1 is still running
    assert await _lag(worker) == await worker.jobs.waiting() == 2
    await worker.append(claims[1], done())
    await worker.append(claims[3], done())
    await worker.jobs.trim()
    assert await worker.bus.call("XLEN", stream) == 2
    assert await _lag(worker) == await worker.jobs.waiting() == 2
    for _ in range(2):
        await worker.append(await worker.take(), done())
    await worker.jobs.trim()
    assert await worker.bus.call("XLEN", stream) == 0
    assert await _lag(worker) == 0
    await worker.submit("late")
    assert await _lag(worker) == 1


async def _lag(worker: BusWorker) -> int | None:
    (row,) = await worker.bus.call("XINFO", "GROUPS", worker.bus.keys.jobs())
    lag: int | None = dict(zip(row[::2], row[1::2], strict=True))[b"lag"]
    return lag


async def test_trimming_spares_what_another_group_has_not_seen(worker: BusWorker) -> None:
    """A group of the user's own keeps its entries."""
    await worker.submit("j")
    await worker.bus.call("XGROUP", "CREATE", worker.bus.keys.jobs(), "audit", "0")
    await worker.append(await worker.take(), done())
    await worker.jobs.trim()
    assert await worker.bus.call("XLEN", worker.bus.keys.jobs()) == 1


async def test_waiting_counts_jobs_before_any_worker_came(bus: Bus) -> None:
    """Without a group everything waits; without a stream nothing does."""
    queue = JobQueue(bus)
    assert await queue.waiting() == 0
    await queue.submit(entry("a"))
    await queue.submit(entry("b"), Priority.LOW)
    assert await queue.waiting() == 2


async def test_a_server_with_an_older_state_is_caught_up_with(worker: BusWorker) -> None:
    """After a crash that lost the last appends, the worker claims the job again and goes on."""
    await worker.submit("j")
    claim = await worker.take()
    for offset in range(3):
        await worker.append(claim, tokens(offset, offset))
    keys, rows = worker.bus.keys, await worker.log.read("j")
    await worker.bus.call("XDEL", keys.log("j"), rows[-1][0])
    await worker.bus.call("HSET", keys.job("j"), "len:0", "2")
    assert (await worker.append(claim, tokens(3, 3))).status == "conflict"
    assert await worker.fetch() == []
    worker.jobs.drop(claim)
    again = await worker.take()
    assert (again.epoch, again.deliveries, again.lengths) == (2, 2, (2,))
    assert (await worker.append(again, tokens(2, 2), done())).status == "ok"
    worker.jobs.ended(again)
    assert await worker.fetch() == []


async def test_the_group_is_made_again_from_the_start(worker: BusWorker) -> None:
    """A group destroyed under the worker's feet comes back with the jobs it had not finished."""
    await worker.submit("j")
    (delivery,) = await worker.fetch()
    await worker.bus.call("XGROUP", "DESTROY", worker.bus.keys.jobs(), TARGET_GROUP)
    assert await worker.claim(delivery) is None
    (again,) = await worker.fetch()
    assert again == delivery
    assert isinstance(again, Delivery)
    assert await worker.claim(again) is not None
