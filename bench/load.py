"""A client that streams chat answers from a gateway and times what a user would see.

Knows nothing of how the answers are made; works against any OpenAI-compatible server that counts
tokens in usage.
"""

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from bench.prompts import MAX_TOKENS, SEED


@dataclass(frozen=True)
class Answer:
    """One streamed answer."""

    ttft_s: float  # request sent to first text
    duration_s: float  # request sent to last byte
    num_tokens: int
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
    """Answer every prompt, `num_streams` at a time; the streams start together."""
    waiting = list(enumerate(prompts))
    answers: dict[int, Answer] = {}
    limits = httpx.Limits(max_connections=num_streams)
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as client:

        async def one_stream() -> None:
            while waiting:
                index, prompt = waiting.pop(0)
                answers[index] = await _stream(client, _body(model, prompt, index, temperature))

        started = time.perf_counter()
        async with asyncio.TaskGroup() as tasks:
            for _ in range(num_streams):
                tasks.create_task(one_stream())
        duration_s = time.perf_counter() - started
    return Load(tuple(answers[index] for index in sorted(answers)), duration_s)


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


async def _stream(client: httpx.AsyncClient, body: dict[str, Any]) -> Answer:
    """One answer. Frames between the first text and the last are taken in, not parsed.

    The client shares the machine with what it measures, so it does no more than it must.
    """
    started = time.perf_counter()
    ttft_s = 0.0
    received = bytearray()
    async with client.stream("POST", "/v1/chat/completions", json=body) as response:
        response.raise_for_status()
        async for chunk in response.aiter_raw():
            received += chunk
            if not ttft_s and any(map(_content, _frames(received))):
                ttft_s = time.perf_counter() - started
    duration_s = time.perf_counter() - started
    frames = _frames(received)
    return Answer(
        ttft_s=ttft_s,
        duration_s=duration_s,
        num_tokens=frames[-1]["usage"]["completion_tokens"],
        text="".join(map(_content, frames)),
        speculation=frames[-1].get("metrics", {}).get("speculative_decoding", {}),
    )


def _frames(received: bytes | bytearray) -> list[dict[str, Any]]:
    """The complete JSON frames of a server-sent event stream."""
    lines = received.split(b"\n")[:-1]
    return [json.loads(line[len(b"data: ") :]) for line in lines if line.startswith(b"data: {")]


def _content(frame: dict[str, Any]) -> str:
    return "".join(choice["delta"].get("content") or "" for choice in frame["choices"])
