"""A job as every gateway sees it: its id and its stored body, which says all there is to know.

What a gateway must remember beside the request (when it came, which response it continues) rides in
the body's metadata under one reserved key, so that another gateway finds it with the body.
"""

import secrets
from typing import Any

import msgspec

from shared.common.errors import ClientError, PeerError
from shared.protocol.limits import MAX_BODY_BYTES
from shared.protocol.requests import ChatRequest, parse_request

RESERVED_KEY = "outrider"
NUM_ID_BYTES = 16  # ids are the only key to an answer, so they must not be guessable


class Origin(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the submitting gateway knew."""

    created_ms: int = 0  # Unix time
    previous_response_id: str | None = None
    has_instructions: bool = False  # the first message is the response's `instructions`


class Job(msgspec.Struct, frozen=True):
    """One submission. `body` is what lies in the jobs stream and in the job's hash."""

    job_id: str
    body: bytes
    request: ChatRequest
    origin: Origin

    @property
    def created_s(self) -> int:
        """Unix time in seconds."""
        return self.origin.created_ms // 1_000

    @property
    def metadata(self) -> dict[str, str]:
        """The client's own metadata."""
        pairs = self.request.metadata or {}
        return {key: value for key, value in pairs.items() if key != RESERVED_KEY}

    @property
    def asks(self) -> dict[str, Any]:
        """The request without its origin, to tell two requests apart."""
        fields = {name: getattr(self.request, name) for name in self.request.__struct_fields__}
        return fields | {"metadata": self.metadata or None}


def new_id(prefix: str) -> str:
    """`chatcmpl-…` or `resp_…` with 128 random bits."""
    return prefix + secrets.token_hex(NUM_ID_BYTES)


def make_job(job_id: str, body: bytes, origin: Origin) -> Job:
    """Check a client's chat completion body and write the origin into it.

    Raises:
        ClientError: see shared.protocol.requests.parse_request, or the reserved key was used.
    """
    request = parse_request(body)
    metadata = request.metadata or {}
    if RESERVED_KEY in metadata:
        raise ClientError(f"the metadata key {RESERVED_KEY} is reserved", param="metadata")
    marked = metadata | {RESERVED_KEY: msgspec.json.encode(origin).decode()}
    stored = msgspec.json.encode(msgspec.json.decode(body) | {"metadata": marked})
    if len(stored) > MAX_BODY_BYTES:
        raise ClientError(
            f"the body must be at most {MAX_BODY_BYTES} bytes", code="too_large", status=413
        )
    return Job(job_id, stored, msgspec.structs.replace(request, metadata=marked), origin)


def read_job(job_id: str, body: bytes) -> Job:
    """The job behind a stored body, whoever submitted it.

    Raises:
        PeerError: no gateway wrote it and no worker could have accepted it.
    """
    try:
        request = parse_request(body)
        marked = (request.metadata or {}).get(RESERVED_KEY)
        origin = msgspec.json.decode(marked, type=Origin) if marked else Origin()
    except (ClientError, msgspec.DecodeError) as error:
        raise PeerError(f"unreadable body of job {job_id}: {error}") from error
    return Job(job_id, body, request, origin)
