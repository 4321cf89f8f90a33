"""The queue of jobs: submitted, fetched, owned by one worker, handed back, taken over, set aside.

The rules are the server's (functions/jobs.lua); this side encodes, waits, and remembers what it was
given.
"""

import asyncio
import secrets
from collections import deque
from collections.abc import Iterable, Mapping

import msgspec
import structlog

from shared.bus.connection import Bus
from shared.bus.link import Argument, Reply
from shared.common.errors import ClientError
from shared.protocol.jobs import JobEntry, readable_id
from shared.protocol.keys import TARGET_GROUP, Priority
from shared.protocol.limits import DEAD_BODY_BYTES
from shared.protocol.records import Failed, to_fields

_HEARTBEAT_POLL_S = 0.05  # a worker that has lost its heartbeat looks this often whether it is back
_MAX_PENDING = 10_000  # entries of one worker; far above what fits its memory

_log = structlog.get_logger()


class Delivery(msgspec.Struct, frozen=True):
    """One entry handed to this worker, still to be claimed."""

    stream: str
    entry_id: str
    fields: Mapping[bytes, bytes]  # as somebody wrote them: not checked


class Claim(msgspec.Struct, frozen=True):
    """The right to append to one job's log, until somebody else has a newer one."""

    job_id: str
    stream: str
    entry_id: str
    epoch: int
    seed: int  # recorded once, by the first owner
    is_cancelled: bool
    deliveries: int  # this one included
    lengths: tuple[int, ...]  # output tokens in the log, one a choice


class JobQueue:
    """The jobs streams, seen from one process."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._reader = bus.reader()
        self._known: set[tuple[str, str]] = set()  # given to our caller, as (stream, entry id)
        self._found: deque[Delivery] = deque()  # ours, not yet given to our caller
        self._num_drops = 0
        self._looked_at = (-1, 0)  # so that the first fetch looks for what an earlier run left
        self._is_interrupted = False
        self._taking = asyncio.Lock()  # an answer under way must not look like a lost one

    async def submit(self, entry: JobEntry, priority: Priority = Priority.NORMAL) -> str:
        """Queue a job. The same job submitted twice is one job.

        Returns:
            The id of its entry in the jobs stream.

        Raises:
            ClientError: the id is known, with another body.
            Unavailable: no server, or it is full.
        """
        keys = self._bus.keys
        names = [keys.job(entry.job_id), keys.jobs(priority)]
        entry_id, outcome = map(
            bytes.decode, await self._bus.function("outrider_open", names, *_flatten(entry))
        )
        if outcome == "conflict":
            raise ClientError(
                "this id was used for another request", param="id", code="id_reused", status=409
            )
        return entry_id

    async def waiting(self) -> int:
        """Entries that no worker has been given yet, all streams together."""
        streams = self._bus.keys.all_jobs
        lengths = await self._bus.execute([("XLEN", stream) for stream in streams])
        groups = await self._bus.execute([("XINFO", "GROUPS", stream) for stream in streams])
        return sum(map(_lag, lengths, groups))

    async def fetch(self, count: int, *, block_s: float) -> list[Delivery]:
        """Take up to `count` new entries, most urgent first; wait up to `block_s` for the first.

        Gives nothing to a worker without a heartbeat: others would take it away at once. Cancelling
        is safe: what was delivered and not returned comes with the next call, or is rescued.
        One fetch at a time; a rescue may run beside it.

        Raises:
            Unavailable: no server before the bus's deadline.
        """
        ends_s = _now_s() + block_s
        while count > 0:
            deliveries, is_alive, cursors = await self._take("outrider_fetch", count)
            left_s = ends_s - _now_s()
            if deliveries or left_s <= 0:
                return deliveries
            if is_alive:
                await self._wait(cursors, left_s)
            else:
                await asyncio.sleep(min(left_s, _HEARTBEAT_POLL_S))
        return []

    async def rescue(self, count: int) -> list[Delivery]:
        """Take over up to `count` entries of workers without a heartbeat.

        Two rescuers never get the same one. Cancelling is safe, as with `fetch`.
        """
        deliveries, _, _ = await self._take("outrider_rescue", count)
        return deliveries

    async def claim(
        self, delivery: Delivery, entry: JobEntry, *, seed: int, num_choices: int
    ) -> Claim | None:
        """Own a delivered job, with the next epoch.

        Args:
            delivery: what `fetch` or `rescue` returned.
            entry: the same, checked.
            seed: used if the job has none yet: 64 bits, unsigned.
            num_choices: of the request.

        Returns:
            None when there is nothing to do: a duplicate, finished, taken over by another worker,
            or set aside after too many deliveries.
        """
        keys, job_id = self._bus.keys, entry.job_id
        nonce = secrets.token_hex(8)  # tells a repeated call from a second claim
        reply = await self._bus.function(
            "outrider_claim",
            [keys.job(job_id), keys.log(job_id), keys.dead],
            *[keys.prefix, job_id, delivery.stream, delivery.entry_id, self._bus.worker_id],
            *[nonce, str(seed), str(num_choices), *_flatten(entry)],
        )
        outcome = reply[0].decode()
        if outcome == "claimed":
            epoch, seed_, cancel, deliveries, *lengths = map(int, reply[1:])
            return Claim(
                *(job_id, delivery.stream, delivery.entry_id, epoch, seed_),
                *(cancel == 1, deliveries, tuple(lengths)),
            )
        if outcome == "unusable":
            await self.bury(delivery, reason="keys_in_use")
        self._forget(delivery)
        _log.info("job_not_claimed", job_id=job_id, reason=outcome)
        return None

    async def hand_back(self, claim: Claim) -> None:
        """Give a job to the next worker, at once and as if it had never been delivered here."""
        keys = self._bus.keys
        names = [keys.job(claim.job_id), keys.jobs(Priority.HIGH)]
        await self._bus.function("outrider_release", names, claim.job_id, claim.epoch)
        self.ended(claim)

    def ended(self, claim: Claim) -> None:
        """Stop counting a job as this worker's: the server has acked its entry.

        Should the server crash and come back without that, the entry is found and given out again.
        """
        self._known.discard((claim.stream, claim.entry_id))

    def drop(self, claim: Claim) -> None:
        """Stop counting a job as this worker's: an append to it was refused.

        If its entry is still pending here, the server has come back with an older state than we
        knew. Then the entry comes again with the next fetch, to be claimed anew from what the log
        holds.
        """
        self.ended(claim)
        self._num_drops += 1

    async def bury(self, delivery: Delivery, *, reason: str, error: Failed | None = None) -> None:
        """Set an entry aside in the dead-letter stream and ack it.

        Args:
            delivery: unreadable, or hopeless.
            reason: a word for the operator.
            error: if given, and the entry names a job of its own, how that job ends.
        """
        keys = self._bus.keys
        job_id = readable_id(delivery.entry_id, delivery.fields)
        body = delivery.fields.get(b"body", b"")
        names = [keys.dead, delivery.stream]
        if job_id:
            names += [keys.job(job_id), keys.log(job_id)]
        record = to_fields(error) if error else {}
        await self._bus.function(
            "outrider_bury",
            names,
            *[keys.prefix, job_id or "", delivery.entry_id, self._bus.worker_id, reason],
            body[:DEAD_BODY_BYTES],
            str(len(body)),
            *(part for field in record.items() for part in field),
        )
        self._forget(delivery)
        _log.warning("job_set_aside", job_id=job_id, entry_id=delivery.entry_id, reason=reason)

    async def trim(self) -> None:
        """Drop finished entries from the jobs streams. Cheap; call it now and then."""
        streams = self._bus.keys.all_jobs
        await self._bus.function("outrider_trim", streams)
        known = set(self._known)
        self._known -= known - await self._pending()

    async def _take(self, function: str, count: int) -> tuple[list[Delivery], bool, list[bytes]]:
        """What is ours already, else what the server gives; whether we are alive; where to wait."""
        is_alive = 1
        cursors: list[bytes] = []
        async with self._taking:
            await self._find_lost()
            while not self._found:
                is_alive, cursors = await self._ask(function, count)
                if not self._is_in_doubt:
                    break
                await self._find_lost()
            return self._hand_out(count), is_alive == 1, cursors

    async def _ask(self, function: str, count: int) -> tuple[int, list[bytes]]:
        streams, prefix = self._bus.keys.all_jobs, self._bus.keys.prefix
        self._is_interrupted = True
        is_alive, delivered, cursors = await self._bus.function(
            function, streams, prefix, self._bus.worker_id, count
        )
        self._is_interrupted = False
        self._found.extend(_deliveries(delivered))
        return is_alive, cursors

    async def _wait(self, cursors: list[bytes], block_s: float) -> None:
        """Wait until a stream moves on. XREAD delivers nothing, so cancelling it loses nothing."""
        streams = self._bus.keys.all_jobs
        block_ms = max(1, round(block_s * 1_000))
        command: list[Argument] = ["XREAD", "COUNT", 1, "BLOCK", block_ms, "STREAMS"]
        await self._reader.read(*command, *streams, *cursors, block_s=block_s)

    @property
    def _is_in_doubt(self) -> bool:
        """Whether the server may have given us entries that we never saw."""
        return self._is_interrupted or self._looked_at != self._doubts

    @property
    def _doubts(self) -> tuple[int, int]:
        """Counted, not flagged: one more may come up while the last ones are looked into."""
        return self._bus.num_losses, self._num_drops

    async def _find_lost(self) -> None:
        """After an interrupted call or a lost reply: look for entries of ours that we never saw."""
        if not self._is_in_doubt:
            return
        doubts = self._doubts
        queued = {(delivery.stream, delivery.entry_id) for delivery in self._found}
        for stream, entry_id in await self._pending() - self._known - queued:
            (row,) = await self._bus.call("XRANGE", stream, entry_id, entry_id) or [None]
            if row is None:  # somebody deleted it: there is nothing left to serve
                await self._bus.call("XACK", stream, TARGET_GROUP, entry_id)
            else:
                self._found.append(_delivery(stream, row))
        self._is_interrupted, self._looked_at = False, doubts

    async def _pending(self) -> set[tuple[str, str]]:
        """Everything delivered to this worker and not acked, as (stream, entry id)."""
        streams, worker_id = self._bus.keys.all_jobs, self._bus.worker_id
        replies = await self._bus.execute(
            [
                ("XPENDING", stream, TARGET_GROUP, "-", "+", _MAX_PENDING, worker_id)
                for stream in streams
            ]
        )
        return {
            (stream, row[0].decode())
            for stream, reply in zip(streams, replies, strict=True)
            if isinstance(reply, list)  # without the group there is nothing pending
            for row in reply
        }

    def _hand_out(self, count: int) -> list[Delivery]:
        deliveries = [self._found.popleft() for _ in range(min(count, len(self._found)))]
        self._known.update((delivery.stream, delivery.entry_id) for delivery in deliveries)
        return deliveries

    def _forget(self, delivery: Delivery) -> None:
        self._known.discard((delivery.stream, delivery.entry_id))


def _now_s() -> float:
    return asyncio.get_running_loop().time()


def _flatten(entry: JobEntry) -> list[Argument]:
    return [part for field in entry.to_fields().items() for part in field]


def _named(row: list[Reply]) -> dict[bytes, Reply]:
    return dict(zip(row[::2], row[1::2], strict=True))


def _lag(length: Reply, groups: Reply) -> int:
    """Entries of one stream that its group has not been given; all of them without a group."""
    for row in map(_named, groups if isinstance(groups, list) else []):
        if row[b"name"] == TARGET_GROUP.encode() and row[b"lag"] is not None:
            return int(row[b"lag"])
    return length if isinstance(length, int) else 0


def _deliveries(reply: list[Reply]) -> Iterable[Delivery]:
    return (_delivery(stream.decode(), row) for stream, rows in reply for row in rows)


def _delivery(stream: str, row: list[Reply]) -> Delivery:
    return Delivery(stream, row[0].decode(), _named(row[1]))
