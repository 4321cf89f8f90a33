"""A client that streams chat answers from a gateway and times what a user would see.

Knows nothing of how the answers are made; works against any OpenAI-compatible server that counts
tokens in usage. It shares the machine with what it measures, so while answers come it collects
bytes, and reads them when all are there: a client library's own work for every chunk was the
largest part of a token's CPU time.
"""

import asyncio
import json
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from bench.prompts import MAX_TOKENS, SEED

TIMEOUT_S = 120  # of one answer
_FIRST_TEXT = re.compile(rb'"content": ?"[^"]')


@dataclass(frozen=True)
class Answer:
    """One streamed answer."""

    ttft_s: float  # request sent to first text
    duration_s: float  # request sent to last byte
    num_tokens: int
    num_frames: int  # server-sent events with text
    text: str
    speculation: dict[str, Any]  # the server's own figures, empty if it gives none


@dataclass(frozen=True)
class Load:
    """What a group of clients saw together."""

    answers: tuple[Answer, ...]
    duration_s: float

    @property
    def tokens_per_s(self) -> float:
        """Tokens of all streams over the wall time."""
        return sum(answer.num_tokens for answer in self.answers) / self.duration_s


async def stream_all(
    url: str, model: str, prompts: Sequence[str], *, num_streams: int, temperature: float
) -> Load:
    """Answer every prompt, `num_streams` at a time; the streams start together.

    Raises:
        RuntimeError: an answer was refused or did not reach its end.
    """
    waiting = list(enumerate(prompts))
    streams: dict[int, _Stream] = {}

    async def one_stream() -> None:
        while waiting:
            index, prompt = waiting.pop(0)
            streams[index] = await _stream(url, _body(model, prompt, index, temperature))

    started = time.perf_counter()
    async with asyncio.TaskGroup() as tasks:
        for _ in range(num_streams):
            tasks.create_task(one_stream())
    duration_s = time.perf_counter() - started
    return Load(tuple(streams[index].answer() for index in sorted(streams)), duration_s)


def _body(model: str, prompt: str, index: int, temperature: float) -> dict[str, Any]:
    return {
        "model": model,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": MAX_TOKENS,
        "ignore_eos": True,
        "temperature": temperature,
        "seed": SEED + index,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


class _Stream(asyncio.Protocol):
    """One request on a connection of its own, and the bytes of its response."""

    def __init__(self) -> None:
        self.is_over = asyncio.get_running_loop().create_future()
        self._received = bytearray()
        self._started_s = time.perf_counter()
        self._first_s: float | None = None  # of text
        self._ended_s = 0.0

    def data_received(self, data: bytes) -> None:
        """Keep what came."""
        self._received += data
        if self._first_s is None and _FIRST_TEXT.search(self._received):
            self._first_s = time.perf_counter()

    def connection_lost(self, exc: Exception | None) -> None:
        """The server closes behind its answer."""
        del exc  # what is missing then is seen in the bytes
        self._ended_s = time.perf_counter()
        if not self.is_over.done():
            self.is_over.set_result(None)

    def answer(self) -> Answer:
        """What the bytes say."""
        frames = _frames(_content_of(bytes(self._received)))
        if not frames or not frames[-1].get("usage"):
            raise RuntimeError(f"an answer has no end: {bytes(self._received[-300:])!r}")
        texts = list(map(_text, frames))
        return Answer(
            ttft_s=(self._first_s or self._ended_s) - self._started_s,
            duration_s=self._ended_s - self._started_s,
            num_tokens=frames[-1]["usage"]["completion_tokens"],
            num_frames=sum(map(bool, texts)),
            text="".join(texts),
            speculation=frames[-1].get("metrics", {}).get("speculative_decoding", {}),
        )


async def _stream(url: str, body: dict[str, Any]) -> _Stream:
    """One answer, to its last byte."""
    place, content = urlsplit(url), json.dumps(body).encode()
    request = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: {place.netloc}\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    ).encode() + content
    async with asyncio.timeout(TIMEOUT_S):
        transport, stream = await asyncio.get_running_loop().create_connection(
            _Stream, place.hostname or "", place.port or 80
        )
        try:
            transport.write(request)
            await stream.is_over
        finally:
            transport.close()
    return stream


def _content_of(response: bytes) -> bytes:
    """The body of an HTTP/1.1 response, out of its chunks if it came in any.

    Raises:
        RuntimeError: its status is not 200, or it was cut short.
    """
    head, _, body = response.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200"):
        raise RuntimeError(f"refused: {response[:300]!r}")
    if b"transfer-encoding: chunked" not in head.lower():
        return body
    parts: list[bytes] = []
    at = 0
    while True:
        line_end = body.find(b"\r\n", at)
        if line_end < 0:
            raise RuntimeError(f"an answer was cut short: {body[-300:]!r}")
        size = int(body[at:line_end], 16)
        if not size:
            return b"".join(parts)
        parts.append(body[line_end + 2 : line_end + 2 + size])
        at = line_end + 2 + size + 2


def _frames(received: bytes) -> list[dict[str, Any]]:
    """The complete JSON frames of a server-sent event stream."""
    lines = received.split(b"\n")[:-1]
    return [json.loads(line[len(b"data: ") :]) for line in lines if line.startswith(b"data: {")]


def _text(frame: dict[str, Any]) -> str:
    return "".join(choice["delta"].get("content") or "" for choice in frame["choices"])
