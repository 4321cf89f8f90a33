import asyncio
from collections.abc import Sequence
from contextlib import suppress

import pytest

from gateway.feed import Feed
from gateway.job import Job, Origin, make_job
from gateway.transcript import Entry
from shared.common.errors import Unavailable
from shared.protocol.records import Record
from tests.gateway.fakes import MemoryLog
from tests.gateway.scripted import done, tokens

RECORDS: list[Record] = [*tokens("a"), done(1)]


class MemoryInbox:
    """A feed that tests fill; `None` is a server that went away."""

    def __init__(self) -> None:
        self.entries: asyncio.Queue[tuple[str, str, Record] | None] = asyncio.Queue()

    async def read_feed(self, *, block_s: float) -> Sequence[tuple[str, str, Record]]:
        """See gateway.feed.Inbox."""
        del block_s
        entry = await self.entries.get()
        if entry is None:
            raise Unavailable("away")
        return [entry]


def make_jobs(*job_ids: str) -> list[Job]:
    """Jobs with these ids."""
    body = b'{"model":"m","messages":[{"role":"user","content":"hi"}]}'
    return [make_job(job_id, body, Origin()) for job_id in job_ids]


async def nothing_before() -> bool:
    """A start without older records."""
    return False


async def test_records_go_to_whoever_follows_their_job() -> None:
    """To all of them, and to nobody else."""
    inbox, log = MemoryInbox(), MemoryLog("a", "b")
    feed = Feed(inbox, log)
    first, second = make_jobs("a", "b")
    running = asyncio.create_task(feed.run())
    async with (
        feed.follow(first, nothing_before) as one,
        feed.follow(first, nothing_before) as two,
        feed.follow(second, nothing_before) as three,
    ):
        for record in RECORDS:
            inbox.entries.put_nowait(("a", log.append("a", record), record))
        found: list[list[Entry]] = [[], []]
        while not (one.position.is_over and two.position.is_over):
            found[0] += await one.read(1.0)
            found[1] += await two.read(1.0)
        assert [[record for _, record in entries] for entries in found] == [RECORDS, RECORDS]
        assert await three.read(0.01) == []
        assert feed.num_followers("a") == 2
    assert feed.num_followers("a") == 0
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running


async def test_a_feed_that_broke_is_made_up_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everybody reads the log; the feed goes on when the server is back."""
    monkeypatch.setattr("gateway.feed.RETRY_S", 0.0)
    inbox, log = MemoryInbox(), MemoryLog("a")
    feed = Feed(inbox, log)
    running = asyncio.create_task(feed.run())
    async with feed.follow(make_jobs("a")[0], nothing_before) as subscription:
        log.append("a", RECORDS[0])  # its copy is lost
        inbox.entries.put_nowait(None)
        assert [record for _, record in await subscription.read(1.0)] == RECORDS[:1]
        inbox.entries.put_nowait(("a", log.append("a", RECORDS[1]), RECORDS[1]))
        assert [record for _, record in await subscription.read(1.0)] == RECORDS[1:]
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running
