"""What scripted targets do, and what several test files ask them."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from shared.protocol.records import Failed, Record
from tests.gateway.scripted import MODEL, STORY, Turn, done, story, tokens

TEXT = "".join(STORY) + " End"
CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "Tell me a story."}]}
RESPONSE = {"model": MODEL, "input": "Tell me a story."}


class Gated:
    """A script that tells the story up to `num_before` records, then waits to be let on."""

    def __init__(self, num_before: int = 3) -> None:
        self.gate = asyncio.Event()
        self._num_before = num_before

    async def __call__(self, turn: Turn) -> AsyncIterator[tuple[Record, ...]]:
        """See tests.gateway.scripted.Script."""
        records = story(turn.request.num_choices)
        for record in records[: self._num_before]:
            yield (record,)
        while not self.gate.is_set():
            yield ()  # asks for the cancel flag, as a round without news does
            await asyncio.sleep(0.01)
        for record in records[self._num_before :]:
            yield (record,)


async def flood(turn: Turn) -> AsyncIterator[tuple[Record, ...]]:
    """A script that sends megabytes until it is cancelled, or has sent 500 MB."""
    offset = 0
    while not turn.is_cancelled and offset < 10_000:
        yield tuple(tokens(*["x" * 50_000] * 10, offset=offset))
        offset += 10
    yield (done(offset),)


async def refuse(_turn: Turn) -> AsyncIterator[tuple[Record, ...]]:
    """A script that finds the prompt too long."""
    yield (Failed("context_length_exceeded", "too long", "messages", 400),)


async def until(socket: ClientConnection, *kinds: str) -> list[dict[str, Any]]:
    """Events up to one of these kinds."""
    found: list[dict[str, Any]] = []
    async with asyncio.timeout(10.0):
        while not found or found[-1]["type"] not in kinds:
            found.append(json.loads(await socket.recv()))
    return found


async def closed(socket: ClientConnection) -> int:
    """Read on until the connection is closed; the code."""
    async with asyncio.timeout(10.0):
        with suppress(ConnectionClosed):
            while True:
                await socket.recv()
    assert socket.close_code is not None
    return socket.close_code
