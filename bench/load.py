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
    started = time.perf_counter()
    ttft_s = 0.0
    pieces: list[str] = []
    last: dict[str, Any] = {}
    async with client.stream("POST", "/v1/chat/completions", json=body) as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            if not line.startswith("data: {"):
                continue
            last = json.loads(line[len("data: ") :])
            for choice in last["choices"]:
                if content := choice["delta"].get("content"):
                    ttft_s = ttft_s or time.perf_counter() - started
                    pieces.append(content)
    return Answer(
        ttft_s=ttft_s,
        duration_s=time.perf_counter() - started,
        num_tokens=last["usage"]["completion_tokens"],
        text="".join(pieces),
        speculation=last.get("metrics", {}).get("speculative_decoding", {}),
    )
