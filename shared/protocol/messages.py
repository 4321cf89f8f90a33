"""What workers tell each other through their inboxes.

Soft state: any message may be lost, late, doubled or a lie.

One stream entry holds one `Batch` as msgpack in the field `m`. Nothing here can change a token
(docs/design.md).
"""

import msgspec

from shared.common.errors import PeerError
from shared.protocol.limits import PROTOCOL_VERSION
from shared.protocol.sampling import SamplingParams

FIELD = b"m"


class DraftRequest(msgspec.Struct, frozen=True, array_like=True, tag="request"):
    """Target to any draft worker: please guess for this session. May be asked again."""

    session_id: str
    target_id: str  # where proposals go
    epoch: int  # of the session's owner; an older request for the same session is dropped
    vocabulary: str  # fingerprint of the tokenizer; a drafter with another one cannot guess
    prompt_len: int  # tokens; the rest of token_ids is output
    max_len: int  # tokens, prompt included; no guess is of use beyond
    token_ids: tuple[int, ...]  # the confirmed tokens
    sampling: SamplingParams


class DraftAccepted(msgspec.Struct, frozen=True, array_like=True, tag="accepted"):
    """Draft worker to target: I guess for this session; send verdicts to `draft_id`."""

    session_id: str
    draft_id: str


class DraftPath(msgspec.Struct, frozen=True, array_like=True, tag="path"):
    """Draft worker to target: one way a session might go on.

    Grown from the first `base_len` confirmed tokens. Where it disagrees with what was confirmed
    since, it is dropped.
    """

    session_id: str
    base_len: int  # tokens, prompt included
    token_ids: tuple[int, ...]  # what follows; the first MAX_PATH_TOKENS count


class Verdict(msgspec.Struct, frozen=True, array_like=True, tag="verdict"):
    """Target to draft worker: what a round confirmed."""

    session_id: str
    base_len: int  # confirmed tokens before the round, prompt included
    token_ids: tuple[int, ...]  # confirmed by the round, the corrected or bonus token last


class DraftClosed(msgspec.Struct, frozen=True, array_like=True, tag="closed"):
    """Either way: no more guesses for this session (over, not worth it, or dropped)."""

    session_id: str


class CancelNotice(msgspec.Struct, frozen=True, array_like=True, tag="cancel"):
    """Gateway to target: the job's cancel flag is set. The flag counts; this saves the wait."""

    job_id: str


Message = DraftRequest | DraftAccepted | DraftPath | Verdict | DraftClosed | CancelNotice


class Batch(msgspec.Struct, frozen=True, array_like=True):
    """One stream entry: everything one process has to say to another at one moment."""

    version: int
    sender: str  # worker id
    messages: tuple[Message, ...]


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Batch)


def encode_batch(sender: str, messages: tuple[Message, ...]) -> bytes:
    """The msgpack bytes of one stream entry."""
    return _encoder.encode(Batch(PROTOCOL_VERSION, sender, messages))


def decode_batch(data: bytes) -> Batch:
    """Read one stream entry.

    Raises:
        PeerError: not msgpack, not of this shape, or of another version.
    """
    try:
        batch = _decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise PeerError(f"unreadable batch: {error}") from error
    if batch.version != PROTOCOL_VERSION:
        raise PeerError(f"batch of version {batch.version}; this process speaks {PROTOCOL_VERSION}")
    return batch
