"""Inboxes: what processes tell each other. Soft state: any of it may be lost, late or doubled."""

import asyncio
from typing import NamedTuple

import structlog
from redis.exceptions import ResponseError

from shared.bus.connection import Bus
from shared.bus.faults import Fault, classify
from shared.bus.link import Command, Reply
from shared.common.errors import PeerError
from shared.protocol.keys import DRAFT_GROUP
from shared.protocol.limits import DRAFT_REQUEST_TTL_S, DRAFTS_MAXLEN, INBOX_TTL_S
from shared.protocol.messages import (
    FIELD,
    DraftRequest,
    Message,
    decode_batch,
    encode_batch,
)
from shared.protocol.records import Record, from_fields

_MAX_ENTRIES = 1_024  # of one read; bounds what a slow reader takes in at once
_REFRESH_S = INBOX_TTL_S / 4

_log = structlog.get_logger()


def post_command(bus: Bus, worker_id: str, messages: tuple[Message, ...]) -> Command:
    """The command that puts one batch into an inbox, to be sent along with others."""
    batch = encode_batch(bus.worker_id, messages)
    return ("FCALL", "outrider_post", 1, bus.keys.inbox(worker_id), batch)


async def post(bus: Bus, worker_id: str, messages: tuple[Message, ...]) -> None:
    """Put messages into another process's inbox, as one batch."""
    await bus.call(*post_command(bus, worker_id, messages))


class FeedEntry(NamedTuple):
    """A record of a job that this gateway follows."""

    job_id: str
    entry_id: str  # of the record in the job's log: the cursor
    record: Record


class _OwnStream:
    """The stream that this process alone reads, from its beginning, each entry once."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._key = bus.keys.inbox(bus.worker_id)
        self._reader = bus.reader()
        self._cursor = b"0-0"
        self._num_losses = bus.num_losses
        self._refreshed_s = 0.0

    async def read(self, *, block_s: float) -> list[dict[bytes, bytes]]:
        """New entries, oldest first, or nothing after `block_s`. Cancelling loses nothing."""
        await self._refresh()
        block_ms = max(1, round(block_s * 1_000))
        reply = await self._reader.read(
            *(
                "XREAD",
                "COUNT",
                _MAX_ENTRIES,
                "BLOCK",
                block_ms,
                "STREAMS",
                self._key,
                self._cursor,
            ),
            block_s=block_s,
        )
        if not reply:
            return []
        rows = reply[0][1]
        self._cursor = rows[-1][0]
        return [_named(row[1]) for row in rows]

    async def _refresh(self) -> None:
        """Keep the stream from expiring, and the cursor from pointing beyond a fresh start."""
        now_s = asyncio.get_running_loop().time()
        if self._num_losses != self._bus.num_losses:
            num_losses = self._bus.num_losses
            newest = await self._bus.call("XREVRANGE", self._key, "+", "-", "COUNT", 1)
            if newest and _order(newest[0][0]) < _order(self._cursor):
                self._cursor = b"0-0"
            self._num_losses = num_losses
        elif now_s - self._refreshed_s < _REFRESH_S:
            return
        await self._bus.call("EXPIRE", self._key, INBOX_TTL_S)
        self._refreshed_s = now_s


class Inbox:
    """This process's messages. One caller at a time."""

    def __init__(self, bus: Bus) -> None:
        self._stream = _OwnStream(bus)
        self.num_unreadable = 0

    async def read(self, *, block_s: float) -> list[Message]:
        """New messages in the order they were posted, or nothing after `block_s`.

        What is no message is counted, logged and dropped. Cancelling loses nothing.

        Raises:
            Unavailable: no server before the bus's deadline.
        """
        messages: list[Message] = []
        for fields in await self._stream.read(block_s=block_s):
            try:
                messages.extend(decode_batch(fields.get(FIELD, b"")).messages)
            except PeerError as error:
                self.num_unreadable += 1
                _log.warning("message_unreadable", reason=str(error))
        return messages


class Feed:
    """The records of all jobs that this gateway follows. One caller at a time."""

    def __init__(self, bus: Bus) -> None:
        self._stream = _OwnStream(bus)
        self.num_unreadable = 0

    async def read(self, *, block_s: float) -> list[FeedEntry]:
        """New records in the order they were committed, or nothing after `block_s`.

        A hint, not the truth: a reader that falls behind misses some. The gap shows in the offsets;
        the log has them all. Cancelling loses nothing.

        Raises:
            Unavailable: no server before the bus's deadline.
        """
        entries: list[FeedEntry] = []
        for fields in await self._stream.read(block_s=block_s):
            try:
                job_id, entry_id = fields[b"id"].decode(), fields[b"entry"].decode()
                entries.append(FeedEntry(job_id, entry_id, from_fields(fields)))
            except (PeerError, KeyError, UnicodeDecodeError) as error:
                self.num_unreadable += 1
                _log.warning("feed_entry_unreadable", reason=str(error))
        return entries


class DraftBoard:
    """Where targets ask for drafts, and draft workers with room find them."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._reader = bus.reader()

    async def post(self, request: DraftRequest) -> None:
        """Ask any draft worker. May be asked again."""
        batch = encode_batch(self._bus.worker_id, (request,))
        drafts = self._bus.keys.drafts
        await self._bus.call("XADD", drafts, "MAXLEN", "~", DRAFTS_MAXLEN, "*", FIELD, batch)

    async def fetch(self, count: int, *, block_s: float) -> list[DraftRequest]:
        """Take up to `count` requests; wait up to `block_s` for the first one.

        Acked at once: a request lost here is asked for again. What is older than
        DRAFT_REQUEST_TTL_S is dropped. One caller at a time.

        Raises:
            Unavailable: no server before the bus's deadline.
        """
        drafts, worker_id = self._bus.keys.drafts, self._bus.worker_id
        block_ms = max(1, round(block_s * 1_000))
        try:
            reply = await self._reader.read(
                *("XREADGROUP", "GROUP", DRAFT_GROUP, worker_id, "COUNT", count),
                *("BLOCK", block_ms, "NOACK", "STREAMS", drafts, ">"),
                block_s=block_s,
            )
        except ResponseError as error:
            if classify(error) is not Fault.REGROUP:
                raise
            await self._create_group()
            return []
        rows = reply[0][1] if reply else []
        return await self._requests(rows) if rows else []

    async def _requests(self, rows: list[Reply]) -> list[DraftRequest]:
        server_s = int((await self._bus.call("TIME"))[0])
        requests: list[DraftRequest] = []
        for entry_id, flat in rows:
            if server_s - _order(entry_id)[0] / 1_000 > DRAFT_REQUEST_TTL_S:
                continue
            try:
                batch = decode_batch(_named(flat).get(FIELD, b""))
            except PeerError as error:
                _log.warning("draft_request_unreadable", reason=str(error))
                continue
            requests += [item for item in batch.messages if isinstance(item, DraftRequest)]
        return requests

    async def _create_group(self) -> None:
        """Create the group, from the beginning. Somebody else may have been faster."""
        command: Command = ("XGROUP", "CREATE", self._bus.keys.drafts, DRAFT_GROUP, "0", "MKSTREAM")
        (reply,) = await self._bus.execute([command])
        if isinstance(reply, ResponseError) and not str(reply).startswith("BUSYGROUP"):
            raise reply


def _named(flat: list[bytes]) -> dict[bytes, bytes]:
    return dict(zip(flat[::2], flat[1::2], strict=True))


def _order(entry_id: bytes) -> tuple[int, int]:
    milliseconds, _, sequence = entry_id.partition(b"-")
    return int(milliseconds), int(sequence)
