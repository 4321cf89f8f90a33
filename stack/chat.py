"""One answer of the service, streamed over its HTTP API. Knows nothing of terminals."""

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Any

import httpx
import msgspec
from msgspec import Struct

CONNECT_TIMEOUT_S = 5.0
SILENCE_TIMEOUT_S = 60.0  # the gateway gives a sign of life every few seconds
_ERROR_STATUS = 400
_DATA = "data: "


class Message(Struct, frozen=True):
    """One turn of the conversation."""

    role: str  # user or assistant
    content: str


class Figures(Struct, frozen=True):
    """How an answer went; what is None was not told."""

    num_tokens: int
    tokens_per_second: float | None
    acceptance_rate: float | None  # None: nothing was drafted
    mean_acceptance_length: float | None


class ServiceError(Exception):
    """The service did not answer, or answered with an error.

    Args:
        message: one sentence for a person.
        code: the service's own word for it, or "".
    """

    def __init__(self, message: str, *, code: str = "") -> None:
        super().__init__(" ".join(message.split()))
        self.code = code


class _Error(Struct):
    message: str = "the service failed"
    code: str | None = None


class _Delta(Struct):
    content: str | None = None


class _Choice(Struct):
    delta: _Delta = msgspec.field(default_factory=_Delta)


class _Usage(Struct):
    completion_tokens: int = 0


class _Speculation(Struct):
    num_draft_tokens: int = 0
    draft_acceptance_rate: float = 0.0
    mean_acceptance_length: float = 1.0


class _Metrics(Struct):
    tokens_per_second: float | None = None
    speculative_decoding: _Speculation = msgspec.field(default_factory=_Speculation)


class _Chunk(Struct):
    choices: tuple[_Choice, ...] = ()
    usage: _Usage | None = None
    metrics: _Metrics | None = None
    error: _Error | None = None


_decoder = msgspec.json.Decoder(_Chunk)


def make_client(gateway_url: str) -> httpx.AsyncClient:
    """A client that talks to the gateway directly, whatever proxies the environment names."""
    timeout = httpx.Timeout(SILENCE_TIMEOUT_S, connect=CONNECT_TIMEOUT_S)
    return httpx.AsyncClient(base_url=gateway_url, timeout=timeout, trust_env=False)


async def answer(
    client: httpx.AsyncClient, *, model: str, messages: Sequence[Message], temperature: float
) -> AsyncGenerator[str | Figures, None]:
    """Stream one answer: pieces of text, then its figures once.

    Raises:
        ServiceError: it did not come to its end.
    Closing the iterator early closes the connection, which cancels the job.
    """
    body: dict[str, Any] = {
        "model": model,
        "messages": messages,
        "temperature": temperature,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    headers = {"content-type": "application/json"}
    try:
        async with client.stream(
            "POST", "/v1/chat/completions", content=msgspec.json.encode(body), headers=headers
        ) as response:
            if response.status_code >= _ERROR_STATUS:
                raise _refused(await response.aread(), response.status_code)
            async for chunk in _chunks(response):
                for piece in _pieces(chunk):
                    yield piece
    except httpx.HTTPError as error:
        reason = str(error) or type(error).__name__
        raise ServiceError(f"the gateway does not answer: {reason}") from error


async def _chunks(response: httpx.Response) -> AsyncIterator[_Chunk]:
    is_complete = False
    async for line in response.aiter_lines():
        if not line.startswith(_DATA):
            continue  # ids, and comments that show life
        data = line[len(_DATA) :]
        if data == "[DONE]":
            is_complete = True
            break
        try:
            chunk = _decoder.decode(data)
        except msgspec.DecodeError as error:
            raise ServiceError(f"the gateway sent what is no chunk: {error}") from error
        if chunk.error is not None:
            raise ServiceError(chunk.error.message, code=chunk.error.code or "")
        yield chunk
    if not is_complete:
        raise ServiceError("the answer broke off")


def _pieces(chunk: _Chunk) -> list[str | Figures]:
    found: list[str | Figures] = [
        choice.delta.content for choice in chunk.choices if choice.delta.content
    ]
    if chunk.usage is not None and chunk.metrics is not None:
        speculation = chunk.metrics.speculative_decoding
        has_drafts = speculation.num_draft_tokens > 0
        found.append(
            Figures(
                num_tokens=chunk.usage.completion_tokens,
                tokens_per_second=chunk.metrics.tokens_per_second,
                acceptance_rate=speculation.draft_acceptance_rate if has_drafts else None,
                mean_acceptance_length=speculation.mean_acceptance_length if has_drafts else None,
            )
        )
    return found


def _refused(body: bytes, status: int) -> ServiceError:
    try:
        error = _decoder.decode(body).error or _Error()
    except msgspec.DecodeError:
        error = _Error(f"the gateway answered with status {status}")
    return ServiceError(error.message, code=error.code or "")
