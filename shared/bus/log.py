"""The session log, `{ID}:out`: fenced appends by the owner, reads by everybody.

A commit is on the path of every verify round, so it is one write and one wait for all sessions of
the round, mail included.
"""

from collections.abc import Sequence
from enum import StrEnum
from itertools import chain

import msgspec
import structlog
from redis.exceptions import ResponseError

from shared.bus.connection import Bus
from shared.bus.jobs import Claim
from shared.bus.link import Argument, Command, Reply
from shared.bus.mail import post_command
from shared.common.errors import PeerError
from shared.protocol.jobs import JobState
from shared.protocol.messages import Message
from shared.protocol.records import Record, Tokens, from_fields, to_fields

_log = structlog.get_logger()


class CommitStatus(StrEnum):
    """What became of an append. Anything but OK means: stop working on this job."""

    OK = "ok"  # in the log, now or since an earlier try
    FENCED = "fenced"  # another epoch owns the job
    GONE = "gone"  # the job has ended, or the server does not know it
    CONFLICT = "conflict"  # a record does not fit: the server came back older, or a bug of ours


class Append(msgspec.Struct, frozen=True):
    """Records of one job, in order: all are appended, or none.

    A terminal record comes last; then the job is acked and its keys expire, in the same step.
    Without records it only asks for the cancel flag.
    """

    claim: Claim
    records: tuple[Record, ...] = ()


class CommitReply(msgspec.Struct, frozen=True):
    """The server's answer to one append."""

    status: CommitStatus
    is_cancelled: bool


class JobInfo(msgspec.Struct, frozen=True):
    """What the server knows of a job."""

    state: JobState | None  # None: nobody has claimed it
    body: bytes
    tenant: str
    reply: str
    epoch: int
    owner: str
    seed: int | None
    is_cancelled: bool
    lengths: tuple[int, ...]  # output tokens in the log, one a choice; empty before the first claim


class SessionLog:
    """The logs of all jobs, seen from one process."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    async def commit(
        self,
        appends: Sequence[Append],
        *,
        mail: Sequence[tuple[str, tuple[Message, ...]]] = (),
    ) -> list[CommitReply]:
        """Append to many logs and post to inboxes, in one write.

        Rides out a server that is away or full, until the bus's deadline; an append that got
        through before its answer was lost is not made twice. Cancelling leaves open which appends
        were made.

        Args:
            appends: of different jobs, or of the same one in order.
            mail: (worker id, messages) pairs; best effort.

        Returns:
            One answer an append, in order.

        Raises:
            Unavailable: the deadline passed.
        """
        commands = [self._append_command(append) for append in appends]
        commands += [post_command(self._bus, worker_id, messages) for worker_id, messages in mail]
        if not commands:
            return []
        replies = await self._bus.execute(commands, is_patient=True)
        for reply in replies[len(appends) :]:
            if isinstance(reply, ResponseError):
                _log.warning("mail_refused", reason=str(reply))
        return [
            _commit_reply(append, reply) for append, reply in zip(appends, replies, strict=False)
        ]

    async def read(
        self, job_id: str, *, after: str = "0", count: int | None = None
    ) -> list[tuple[str, Record]]:
        """Records after the entry `after`, oldest first, at most `count`; with their entry ids."""
        limit: Command = () if count is None else ("COUNT", count)
        rows = await self._bus.call("XRANGE", self._bus.keys.log(job_id), f"({after}", "+", *limit)
        return [(row[0].decode(), _record(row[1])) for row in rows]

    async def choices(self, job_id: str) -> list[tuple[int, ...]]:
        """The output tokens of every choice so far: what a takeover continues from.

        Raises:
            PeerError: the log has a gap or an unreadable record.
        """
        num_choices = await self._bus.call("HGET", self._bus.keys.job(job_id), "choices")
        tokens: list[list[int]] = [[] for _ in range(int(num_choices or 0))]
        for _, record in await self.read(job_id):
            if isinstance(record, Tokens):
                if record.choice >= len(tokens):
                    raise PeerError(f"log of {job_id}: choice {record.choice} of {len(tokens)}")
                held = tokens[record.choice]
                if record.offset != len(held):
                    raise PeerError(
                        f"log of {job_id}: offset {record.offset} after {len(held)} tokens"
                    )
                held.extend(record.token_ids)
        return [tuple(held) for held in tokens]

    async def cancel(self, job_id: str) -> bool:
        """Ask for a job to end; its owner hears of it at once. Whether it was still to end."""
        prefix, sender = self._bus.keys.prefix, self._bus.worker_id
        return await self._function("outrider_cancel", job_id, prefix, job_id, sender)

    async def follow(self, job_id: str, gateway_id: str) -> bool:
        """Copy the job's records to a gateway's feed from now on. Whether there is such a job.

        Beyond MAX_FOLLOWERS gateways the one that came first is dropped. Follow, then read the log:
        in this order nothing is missed.
        """
        return await self._function("outrider_follow", job_id, gateway_id)

    async def unfollow(self, job_id: str, gateway_id: str) -> None:
        """Stop copying."""
        await self._function("outrider_unfollow", job_id, gateway_id)

    async def info(self, job_id: str) -> JobInfo | None:
        """What the server knows of a job; None when it does not know it (any more)."""
        flat = await self._bus.call("HGETALL", self._bus.keys.job(job_id))
        fields = dict(zip(flat[::2], flat[1::2], strict=True))
        return _job_info(fields) if fields else None

    async def _function(self, name: str, job_id: str, *arguments: Argument) -> bool:
        reply: int = await self._bus.function(name, [self._bus.keys.job(job_id)], *arguments)
        return reply == 1

    def _append_command(self, append: Append) -> Command:
        keys, claim = self._bus.keys, append.claim
        command: list[Argument] = ["FCALL", "outrider_commit", 2, keys.job(claim.job_id)]
        command += (keys.log(claim.job_id), keys.prefix, claim.job_id, claim.epoch)
        for record in append.records:
            fields = to_fields(record)
            command.append(2 * len(fields))
            command += chain.from_iterable(fields.items())
        return tuple(command)


def _commit_reply(append: Append, reply: Reply) -> CommitReply:
    if isinstance(reply, ResponseError):  # somebody has put something else under the job's keys
        _log.error("append_refused", job_id=append.claim.job_id, reason=str(reply))
        return CommitReply(CommitStatus.GONE, is_cancelled=False)
    status = CommitStatus(reply[0].decode())
    if status is CommitStatus.CONFLICT:
        _log.error("append_conflict", job_id=append.claim.job_id, epoch=append.claim.epoch)
    return CommitReply(status, is_cancelled=reply[1] == b"1")


def _record(flat: list[bytes]) -> Record:
    return from_fields(dict(zip(flat[::2], flat[1::2], strict=True)))


def _job_info(fields: dict[bytes, bytes]) -> JobInfo:
    def text(name: bytes) -> str:
        return fields.get(name, b"").decode(errors="replace")

    num_choices = int(text(b"choices") or 0)
    return JobInfo(
        state=JobState(text(b"state")) if b"state" in fields else None,
        body=fields.get(b"body", b""),
        tenant=text(b"tenant"),
        reply=text(b"reply"),
        epoch=int(text(b"epoch") or 0),
        owner=text(b"owner"),
        seed=int(text(b"seed")) if b"seed" in fields else None,
        is_cancelled=text(b"cancel") == "1",
        lengths=tuple(int(text(b"len:%d" % choice) or 0) for choice in range(num_choices)),
    )
