"""The session log, `{ID}:out`: what users read. Flat fields, so that `redis-cli` is a client.

tokens* finished* (done | error): token records with dense offsets for every choice, a `finished`
for each choice that ends before the last one, then exactly one terminal record. A gateway's feed
holds the same records plus `id`.
"""

from collections.abc import Mapping
from enum import StrEnum

import msgspec

from shared.common.errors import PeerError
from shared.protocol.limits import PROTOCOL_VERSION


class FinishReason(StrEnum):
    """Why a choice ended."""

    STOP = "stop"  # an end token, a stop id or a stop string
    LENGTH = "length"  # max_tokens, or the model's context is full


class Usage(msgspec.Struct, frozen=True):
    """Counts of a whole job, all choices together."""

    prompt_tokens: int = 0
    cached_tokens: int = 0  # prompt tokens whose KV blocks were already there
    completion_tokens: int = 0


class SpeculationStats(msgspec.Struct, frozen=True):
    """How the guesses of a job fared. Rounds without drafts are not counted."""

    num_rounds: int = 0  # verify rounds that held at least one draft token
    num_draft_tokens: int = 0
    num_accepted_tokens: int = 0
    # [K] each: how often a round's i-th draft token was there, and how often it was accepted.
    drafted_per_position: tuple[int, ...] = ()
    accepted_per_position: tuple[int, ...] = ()

    @property
    def acceptance_rate(self) -> float:
        """accepted / drafted; 0 when nothing was drafted."""
        return self.num_accepted_tokens / self.num_draft_tokens if self.num_draft_tokens else 0.0

    @property
    def mean_acceptance_length(self) -> float:
        """1 + accepted / rounds with drafts: tokens a verify round is worth."""
        return 1.0 + (self.num_accepted_tokens / self.num_rounds if self.num_rounds else 0.0)


class Tokens(msgspec.Struct, frozen=True):
    """Output tokens of one choice, in order, each appended exactly once."""

    choice: int
    offset: int  # output tokens of this choice before these
    token_ids: tuple[int, ...]
    text: str  # what may be shown now: text that could become a stop string is held back


class Finished(msgspec.Struct, frozen=True):
    """One choice is complete; others go on."""

    choice: int
    text: str  # what was held back
    reason: FinishReason


class Done(msgspec.Struct, frozen=True):
    """Terminal: every choice is complete."""

    choice: int  # the one that ended last, to which `text` belongs
    text: str  # what was held back
    reasons: tuple[FinishReason, ...]  # one a choice
    seed: int
    usage: Usage
    speculation: SpeculationStats


class Failed(msgspec.Struct, frozen=True):
    """Terminal: the job ended early; what was logged before stays true."""

    code: str  # cancelled, deadline_exceeded, invalid_value, context_length_exceeded, …
    message: str
    param: str | None = None
    status: int = 500  # HTTP; 499 when the client cancelled


Record = Tokens | Finished | Done | Failed
Terminal = Done | Failed

_VERSION = str(PROTOCOL_VERSION)
_VERSION_BYTES = _VERSION.encode()


def to_fields(record: Record) -> dict[str, str]:
    """The record as flat stream fields, version first."""
    match record:
        case Tokens(choice, offset, token_ids, text):
            return {
                "v": _VERSION,
                "ev": "tokens",
                "choice": str(choice),
                "off": str(offset),
                "ids": ",".join(map(str, token_ids)),
                "text": text,
            }
        case Finished(choice, text, reason):
            return {
                "v": _VERSION,
                "ev": "finished",
                "choice": str(choice),
                "text": text,
                "reason": reason,
            }
        case Done():
            return {
                "v": _VERSION,
                "ev": "done",
                "choice": str(record.choice),
                "text": record.text,
                "reasons": ",".join(record.reasons),
                "seed": str(record.seed),
                "usage": msgspec.json.encode(record.usage).decode(),
                "speculation": msgspec.json.encode(record.speculation).decode(),
            }
        case Failed(code, message, param, status):
            fields = {
                "v": _VERSION,
                "ev": "error",
                "code": code,
                "message": message,
                "status": str(status),
            }
            return fields if param is None else {**fields, "param": param}


def from_fields(fields: Mapping[bytes, bytes]) -> Record:
    """Read one stream entry.

    Raises:
        PeerError: a field is missing or malformed, or the version or event is unknown.
    """
    try:
        if fields[b"v"] != _VERSION_BYTES:
            version = fields[b"v"].decode()
            raise PeerError(f"log record of version {version}; this process speaks {_VERSION}")
        return _READERS[fields[b"ev"]](fields)
    except (KeyError, ValueError, msgspec.DecodeError) as error:
        raise PeerError(f"unreadable log record: {error!r}") from error


def _read_tokens(fields: Mapping[bytes, bytes]) -> Record:
    ids = fields[b"ids"]
    token_ids = tuple(map(int, ids.split(b","))) if ids else ()
    return Tokens(int(fields[b"choice"]), int(fields[b"off"]), token_ids, fields[b"text"].decode())


def _read_finished(fields: Mapping[bytes, bytes]) -> Record:
    reason = FinishReason(fields[b"reason"].decode())
    return Finished(int(fields[b"choice"]), fields[b"text"].decode(), reason)


def _read_done(fields: Mapping[bytes, bytes]) -> Record:
    return Done(
        choice=int(fields[b"choice"]),
        text=fields[b"text"].decode(),
        reasons=tuple(map(FinishReason, fields[b"reasons"].decode().split(","))),
        seed=int(fields[b"seed"]),
        usage=msgspec.json.decode(fields[b"usage"], type=Usage),
        speculation=msgspec.json.decode(fields[b"speculation"], type=SpeculationStats),
    )


def _read_error(fields: Mapping[bytes, bytes]) -> Record:
    param = fields.get(b"param")
    return Failed(
        fields[b"code"].decode(),
        fields[b"message"].decode(),
        None if param is None else param.decode(),
        int(fields[b"status"]),
    )


_READERS = {
    b"tokens": _read_tokens,
    b"finished": _read_finished,
    b"done": _read_done,
    b"error": _read_error,
}
