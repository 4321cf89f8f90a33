"""A submission, as it lies in a jobs stream, and the states of the job it becomes.

Anyone who may XADD can submit, so every field is checked here again, whoever wrote it.
"""

import hashlib
import re
from collections.abc import Mapping
from enum import StrEnum

import msgspec

from shared.common.errors import ClientError
from shared.protocol.limits import MAX_BODY_BYTES, MAX_ID_CHARS, PROTOCOL_VERSION

_MILLISECOND_DIGITS = 15  # far past any deadline, well inside 64 bits
_ID = re.compile(rf"[A-Za-z0-9_.:-]{{1,{MAX_ID_CHARS}}}")


class JobState(StrEnum):
    """Where a job is. Kept in `{ID}:job`; a job that nobody has claimed has none."""

    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"


class IllegalTransition(AssertionError):
    """An event that the state does not allow: a bug of ours."""


TRANSITIONS = {
    (None, "claimed"): JobState.RUNNING,
    (None, "failed"): JobState.FAILED,  # set aside before anyone could claim it
    (JobState.RUNNING, "claimed"): JobState.RUNNING,  # by the next owner, with the next epoch
    (JobState.RUNNING, "committed"): JobState.RUNNING,
    (JobState.RUNNING, "released"): JobState.RUNNING,  # handed back; waits for the next owner
    (JobState.RUNNING, "done"): JobState.DONE,
    (JobState.RUNNING, "failed"): JobState.FAILED,
}


def next_state(state: JobState | None, event: str) -> JobState:
    """The state after `event`. The server's functions enforce the same table.

    Raises:
        IllegalTransition: the table has no such row.
    """
    try:
        return TRANSITIONS[state, event]
    except KeyError:
        raise IllegalTransition(f"{event} in state {state}") from None


class JobEntry(msgspec.Struct, frozen=True):
    """One entry of a jobs stream. Only `body` is required of a submitter."""

    job_id: str
    body: bytes  # OpenAI chat completion request as JSON; checked by shared.protocol.requests
    deadline_ms: int | None = None  # Unix time after which nobody waits any more
    tenant: str = ""  # prefix blocks are shared within a tenant only
    traceparent: str = ""
    reply: str = ""  # worker id of a gateway whose feed gets a copy of each record

    def to_fields(self) -> dict[str, str | bytes]:
        """Flat stream fields; what is empty is left out."""
        fields: dict[str, str | bytes] = {
            "v": str(PROTOCOL_VERSION),
            "id": self.job_id,
            "body": self.body,
        }
        if self.deadline_ms is not None:
            fields["deadline_ms"] = str(self.deadline_ms)
        optional = {"tenant": self.tenant, "traceparent": self.traceparent, "reply": self.reply}
        return fields | {name: value for name, value in optional.items() if value}


def idempotent_id(tenant: str, idempotency_key: str) -> str:
    """The job id of an idempotency key: one key, one job, however often it is submitted."""
    return "idem-" + hashlib.sha256(f"{tenant}\n{idempotency_key}".encode()).hexdigest()[:32]


def parse_entry(entry_id: str, fields: Mapping[bytes, bytes]) -> JobEntry:
    """Read one entry of a jobs stream.

    Without the field `id` the job is named after `idem`, and without that after the entry itself.

    Raises:
        ClientError: a field is missing, too long or malformed; `param` names it.
    """
    version = _text(fields, b"v") or str(PROTOCOL_VERSION)
    if version != str(PROTOCOL_VERSION):
        raise ClientError(f"v must be {PROTOCOL_VERSION}", param="v", code="unsupported_version")
    body = fields.get(b"body")
    if not body:
        raise ClientError("body is required: the JSON of a chat completion request", param="body")
    if len(body) > MAX_BODY_BYTES:
        raise ClientError(
            f"body must be at most {MAX_BODY_BYTES} bytes", param="body", code="too_large"
        )
    tenant = _identifier(fields, b"tenant")
    key = _identifier(fields, b"idem")
    return JobEntry(
        job_id=_identifier(fields, b"id") or (idempotent_id(tenant, key) if key else entry_id),
        body=body,
        deadline_ms=_milliseconds(fields),
        tenant=tenant,
        traceparent=_text(fields, b"traceparent")[:MAX_ID_CHARS],
        reply=_identifier(fields, b"reply"),
    )


def readable_id(entry_id: str, fields: Mapping[bytes, bytes]) -> str | None:
    """The job's id, named as `parse_entry` names it, even if the rest is unreadable; or None."""
    try:
        tenant, key = _identifier(fields, b"tenant"), _identifier(fields, b"idem")
        return _identifier(fields, b"id") or (idempotent_id(tenant, key) if key else entry_id)
    except ClientError:
        return None


def _text(fields: Mapping[bytes, bytes], name: bytes) -> str:
    try:
        return fields.get(name, b"").decode()
    except UnicodeDecodeError:
        raise ClientError(f"{name.decode()} must be UTF-8", param=name.decode()) from None


def _identifier(fields: Mapping[bytes, bytes], name: bytes) -> str:
    value = _text(fields, name)
    if value and not _ID.fullmatch(value):
        allowed = f"1 to {MAX_ID_CHARS} of letters, digits and _.:-"
        raise ClientError(f"{name.decode()} must be {allowed}", param=name.decode())
    return value


def _milliseconds(fields: Mapping[bytes, bytes]) -> int | None:
    value = _text(fields, b"deadline_ms")
    if not value:
        return None
    if not (value.isascii() and value.isdigit() and len(value) <= _MILLISECOND_DIGITS):
        raise ClientError("deadline_ms must be a Unix time in milliseconds", param="deadline_ms")
    return int(value)
