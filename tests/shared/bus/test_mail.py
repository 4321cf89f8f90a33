"""Inboxes, feeds and the board of draft requests."""

import asyncio

import pytest
import structlog.testing

from shared.bus.connection import Bus
from shared.bus.mail import DraftBoard, Feed, Inbox, post
from shared.protocol.limits import DRAFT_REQUEST_TTL_S, INBOX_MAXLEN, INBOX_TTL_S
from shared.protocol.messages import DraftClosed, DraftPath, DraftRequest, Verdict, encode_batch
from shared.protocol.sampling import SamplingParams
from tests.bus_worker import BusWorker, tokens, until
from tests.conftest import ConnectBus

pytestmark = pytest.mark.server


def request(number: int) -> DraftRequest:
    return DraftRequest(f"j{number}/0", "target:a", 1, "v", 1, 9, (1,), SamplingParams(seed=1))


async def test_messages_arrive_in_order(bus: Bus, connect_bus: ConnectBus) -> None:
    """What was posted before the first read counts, too."""
    sender = await connect_bus("draft:d")
    messages = (DraftPath("j/0", 3, (1, 2)), Verdict("j/0", 3, (1,)), DraftClosed("j/0"))
    await post(sender, "target:a", messages[:2])
    await post(sender, "target:a", messages[2:])
    inbox = Inbox(bus)
    assert tuple(await inbox.read(block_s=1.0)) == messages
    assert await inbox.read(block_s=0.01) == []


async def test_a_read_waits_for_mail(bus: Bus, connect_bus: ConnectBus) -> None:
    """And wakes up when it comes."""
    sender = await connect_bus("draft:d")
    async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
        read = tasks.create_task(Inbox(bus).read(block_s=9.0))
        await post(sender, "target:a", (DraftClosed("j/0"),))
    assert read.result() == [DraftClosed("j/0")]


async def test_a_cancelled_read_loses_nothing(bus: Bus) -> None:
    """Reading moves a cursor of the reader's own, and only when it returns."""
    inbox = Inbox(bus)
    for number in range(20):
        read = asyncio.ensure_future(inbox.read(block_s=5.0))
        await post(bus, "target:a", (DraftClosed(str(number)),))
        await asyncio.wait([read], timeout=0.0003 * (number % 4))
        if not read.done():
            read.cancel()
            await asyncio.wait([read])
        got = [] if read.cancelled() else read.result()
        got = got or await inbox.read(block_s=5.0)
        assert got == [DraftClosed(str(number))]


async def test_unreadable_mail_is_counted_and_dropped(bus: Bus) -> None:
    """Garbage between two messages costs neither of them."""
    key = bus.keys.inbox("target:a")
    await post(bus, "target:a", (DraftClosed("1"),))
    for fields in (("m", b"\xc1garbage"), ("other", "field"), ("m", b"\x93\x02\xa1x\x90")):
        await bus.call("XADD", key, "*", *fields)
    await post(bus, "target:a", (DraftClosed("2"),))
    inbox = Inbox(bus)
    with structlog.testing.capture_logs() as logs:
        assert await inbox.read(block_s=1.0) == [DraftClosed("1"), DraftClosed("2")]
    assert inbox.num_unreadable == 3
    assert [log["event"] for log in logs].count("message_unreadable") == 3


async def test_an_inbox_goes_away_with_its_process(bus: Bus) -> None:
    """It expires unless somebody reads it, and it is bounded meanwhile."""
    key = bus.keys.inbox("target:a")
    await post(bus, "target:a", (DraftClosed("1"),))
    assert INBOX_TTL_S - 60 < await bus.call("TTL", key) <= INBOX_TTL_S
    await bus.call("EXPIRE", key, 5)
    await Inbox(bus).read(block_s=0.01)
    assert await bus.call("TTL", key) > INBOX_TTL_S - 60
    batch = encode_batch("draft:d", (DraftClosed("1"),))
    await bus.execute([("FCALL", "outrider_post", 1, key, batch)] * (INBOX_MAXLEN + 500))
    assert INBOX_MAXLEN <= await bus.call("XLEN", key) < INBOX_MAXLEN + 200


async def test_a_reader_follows_a_server_whose_clock_went_back(bus: Bus) -> None:
    """After an outage the ids may be smaller than the cursor; then it is read from the start."""
    inbox, key = Inbox(bus), bus.keys.inbox("target:a")
    batch = encode_batch("draft:d", (DraftClosed("future"),))
    await bus.call("XADD", key, "99999999999999-0", "m", batch)
    assert await inbox.read(block_s=1.0) == [DraftClosed("future")]
    await bus.call("DEL", key)
    await post(bus, "target:a", (DraftClosed("now"),))
    bus.num_losses += 1
    assert await inbox.read(block_s=1.0) == [DraftClosed("now")]


async def test_an_unreadable_feed_entry_is_dropped(
    worker: BusWorker, connect_bus: ConnectBus
) -> None:
    """The records around it arrive."""
    gateway = await connect_bus("gateway:g")
    feed, key = Feed(gateway), gateway.keys.inbox("gateway:g")
    await worker.submit("j", reply="gateway:g")
    await worker.append(await worker.take(), tokens(0, 1))
    for fields in (("ev", "tokens"), ("id", "j", "entry", "1-1", "v", "1"), ("id", b"\xff")):
        await gateway.call("XADD", key, "*", *fields)
    assert [entry.record for entry in await feed.read(block_s=1.0)] == [tokens(0, 1)]
    assert feed.num_unreadable == 3


async def test_each_draft_request_goes_to_one_worker(connect_bus: ConnectBus) -> None:
    """Shared out between the workers that have room, acked at once."""
    boards = [DraftBoard(await connect_bus(f"draft:{name}")) for name in "ab"]
    for number in range(5):
        await boards[0].post(request(number))
    assert await boards[0].fetch(2, block_s=0.01) == []  # makes the group, from the beginning
    taken = [
        *await boards[0].fetch(2, block_s=1.0),
        *await boards[1].fetch(9, block_s=1.0),
    ]
    assert taken == [request(number) for number in range(5)]
    assert await boards[1].fetch(9, block_s=0.01) == []


async def test_old_and_unreadable_draft_requests_are_dropped(bus: Bus) -> None:
    """A drafter that starts late does not work through sessions that went on without it."""
    board, key = DraftBoard(bus), bus.keys.drafts
    now_ms = int((await bus.call("TIME"))[0]) * 1_000
    old_ms = now_ms - int(DRAFT_REQUEST_TTL_S * 1_000) - 2_000
    batch = encode_batch("target:a", (request(0), DraftClosed("stray")))
    await bus.call("XADD", key, f"{old_ms}-0", "m", batch)
    await bus.call("XADD", key, "*", "m", b"garbage")
    await bus.call("XADD", key, "*", "m", batch)
    assert await until(lambda: board.fetch(9, block_s=1.0)) == [request(0)]
