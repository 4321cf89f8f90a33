import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway import subscriptions
from gateway.subscriptions import DIVERGED, LOST, MAX_BUFFERED, Subscription
from gateway.transcript import Entry
from shared.protocol.records import Failed, Record
from tests.gateway.fakes import MemoryLog
from tests.gateway.scripted import done, story, tokens

JOB = "job"


def subscribe(log: MemoryLog, num_choices: int = 1, *, is_behind: bool = False) -> Subscription:
    """A reader of the job."""
    return Subscription(JOB, num_choices, log, is_behind=is_behind)


async def read_all(subscription: Subscription) -> list[Record]:
    """Everything up to the end."""
    found: list[Entry] = []
    async with asyncio.timeout(5.0):
        while not subscription.position.is_over:
            found += await subscription.read(1.0)
    return [record for _, record in found]


@pytest.fixture
def no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Silence is suspicious at once."""
    monkeypatch.setattr(subscriptions, "SILENCE_S", 0.01)
    monkeypatch.setattr(subscriptions, "RETRY_S", 0.001)


async def test_a_feed_without_gaps_needs_no_log() -> None:
    """What offsets prove is believed."""
    log, records = MemoryLog(JOB), [*tokens("a", "b", "c"), done(3)]
    subscription = subscribe(log)
    for record in records:
        subscription.offer(log.append(JOB, record), record)
    assert await read_all(subscription) == records
    assert log.num_reads == 0


@pytest.mark.usefixtures("no_patience")
@given(st.data())
def test_whatever_a_feed_does_every_entry_comes_once(data: st.DataObject) -> None:
    """Entries may be lost, doubled, late or early: the reader sees the log."""
    num_choices = data.draw(st.integers(1, 3))
    records = story(num_choices)
    indices = st.integers(0, len(records) - 1)
    noise = data.draw(st.lists(indices, max_size=2 * len(records)))
    log = MemoryLog(JOB)

    async def run() -> list[Record]:
        subscription = subscribe(log, num_choices)
        reading = asyncio.create_task(read_all(subscription))
        ids: list[str] = []
        for record in records:
            ids.append(log.append(JOB, record))
            for index in noise[: len(ids)]:
                if index < len(ids):
                    subscription.offer(ids[index], records[index])
            await asyncio.sleep(0)
        return await reading

    assert asyncio.run(run()) == records


async def test_a_slow_reader_keeps_little_and_loses_nothing() -> None:
    """What does not fit the buffer is read from the log when the client takes it."""
    log = MemoryLog(JOB)
    subscription = subscribe(log)
    records: list[Record] = [*tokens(*"x" * 10 * MAX_BUFFERED), done(10 * MAX_BUFFERED)]
    for record in records:
        subscription.offer(log.append(JOB, record), record)
        assert len(subscription._buffer) <= MAX_BUFFERED
    assert await read_all(subscription) == records
    assert log.num_reads == 1


@pytest.mark.usefixtures("no_patience")
async def test_a_lost_feed_only_delays() -> None:
    """After a silence the log is read."""
    log = MemoryLog(JOB)
    records = [*tokens("a"), done(1)]
    subscription = subscribe(log)
    for record in records:
        log.append(JOB, record)
    assert await read_all(subscription) == records


async def test_what_comes_during_a_read_of_the_log_is_not_lost() -> None:
    """The feed counts again from before the read."""
    log = MemoryLog(JOB)
    first, second, last = *tokens("a", "b"), done(2)
    subscription = subscribe(log, is_behind=True)
    log.append(JOB, first)
    reading = asyncio.create_task(subscription.read(1.0))
    await asyncio.sleep(0)  # it has asked for the log and waits
    for record in (second, last):
        subscription.offer(log.append(JOB, record), record)
    found = [record for _, record in await reading]
    assert found + await read_all(subscription) == [first, second, last]


async def test_silence_is_told_after_the_timeout() -> None:
    """So that a sign of life can be sent."""
    assert await subscribe(MemoryLog(JOB)).read(0.01) == []


@pytest.mark.usefixtures("no_patience")
async def test_a_log_that_is_gone_ends_the_answer() -> None:
    """A server that lost its data cannot keep clients waiting for ever."""
    assert await read_all(subscribe(MemoryLog())) == [LOST]


async def test_a_log_that_contradicts_what_was_read_ends_the_answer() -> None:
    """Nothing is repeated, nothing left out: better no end than a wrong one."""
    log = MemoryLog(JOB)
    subscription = subscribe(log)
    for record in tokens("a", "b"):
        subscription.offer("9-0", record)
    assert len(await subscription.read(1.0)) == 2
    subscription._last_id = "0-0"
    log.append(JOB, tokens("a", "b", "c", per_record=3)[0])
    subscription.fall_behind()
    assert await read_all(subscription) == [DIVERGED]


@pytest.mark.usefixtures("no_patience")
async def test_a_server_that_is_away_is_waited_for() -> None:
    """The log is there when it is back."""
    log = MemoryLog(JOB)
    log.is_away = True
    records: list[Record] = [*tokens("a"), done(1)]
    for record in records:
        log.append(JOB, record)
    subscription = subscribe(log, is_behind=True)
    assert await subscription.read(0.01) == []
    log.is_away = False
    assert await read_all(subscription) == records


async def test_a_cancelled_read_loses_nothing() -> None:
    """The next read starts where it stood."""
    log = MemoryLog(JOB)
    records: list[Record] = [*tokens("a"), Failed("x", "y")]
    subscription = subscribe(log, is_behind=True)
    for record in records:
        log.append(JOB, record)
    reading = asyncio.create_task(subscription.read(1.0))
    await asyncio.sleep(0)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert await read_all(subscription) == records


async def test_an_observer_sees_records_when_they_come() -> None:
    """Latencies do not depend on who reads how fast."""
    seen: list[Record] = []
    subscription = Subscription(JOB, 1, MemoryLog(JOB), is_behind=False, observer=seen.append)
    records = tokens("a", "b")
    for record in records:
        subscription.offer("1-0", record)
    assert seen == records
