"""draft_worker/outbox.py: mail to targets."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from draft_worker.outbox import Outbox
from shared.bus.connection import Bus
from shared.bus.mail import Inbox
from shared.protocol.limits import MAX_PATHS_PER_BATCH
from shared.protocol.messages import DraftPath, Message

pytestmark = pytest.mark.server

ConnectBus = Callable[..., Awaitable[Bus]]


def path(number: int) -> DraftPath:
    return DraftPath("job/0", number, (1,))


async def test_what_gathers_for_a_target_is_one_message(connect_bus: ConnectBus) -> None:
    """Order is kept, targets are kept apart."""
    outbox = Outbox(await connect_bus("draft:d"))
    outbox.put({"target:a": [path(1)], "target:b": [path(2)]})
    outbox.put({"target:a": [path(3)]})
    await outbox.flush()
    target = await connect_bus("target:a")
    assert await target.call("XLEN", target.keys.inbox("target:a")) == 1
    expected: list[Message] = [path(1), path(3)]
    assert await Inbox(target).read(block_s=1.0) == expected


async def test_the_oldest_mail_goes_when_too_much_waits(connect_bus: ConnectBus) -> None:
    """Memory is bounded behind a slow server."""
    outbox = Outbox(await connect_bus("draft:d"))
    outbox.put({"target:a": [path(number) for number in range(MAX_PATHS_PER_BATCH + 5)]})
    await outbox.flush()
    messages = await Inbox(await connect_bus("target:a")).read(block_s=1.0)
    assert (messages[0], len(messages)) == (path(5), MAX_PATHS_PER_BATCH)


async def test_nothing_is_sent_without_mail(connect_bus: ConnectBus) -> None:
    """A flush of nothing reaches nobody."""
    bus = await connect_bus("draft:d")
    await Outbox(bus).flush()
    assert await bus.call("EXISTS", bus.keys.inbox("target:a")) == 0


async def test_it_sends_as_mail_comes(connect_bus: ConnectBus) -> None:
    """The senders sleep until there is something."""
    outbox = Outbox(await connect_bus("draft:d"))
    senders = [asyncio.create_task(outbox.run()) for _ in range(2)]
    inbox = Inbox(await connect_bus("target:a"))
    for number in range(3):
        outbox.put({"target:a": [path(number)]})
        assert await inbox.read(block_s=5.0) == [path(number)]
    for sender in senders:
        sender.cancel()
