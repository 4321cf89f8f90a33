"""A TCP proxy for tests: loses replies, holds them back, counts what went through."""

import asyncio
from typing import Self

_CHUNK_BYTES = 1 << 16


class _Hangup(Exception):
    """One end is gone."""


class Proxy:
    """Stands between a client and a server on this machine."""

    def __init__(self, server_port: int) -> None:
        self._server_port = server_port
        self._listener: asyncio.Server | None = None
        self._marker = b""
        self._num_to_lose = 0
        self.num_lost = 0
        self._flowing = asyncio.Event()
        self._flowing.set()

    async def start(self) -> Self:
        """Listen on a free port."""
        self._listener = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    @property
    def url(self) -> str:
        """Where clients connect."""
        assert self._listener is not None
        return f"redis://127.0.0.1:{self._listener.sockets[0].getsockname()[1]}/0"

    def lose_replies(self, marker: bytes, count: int = 1) -> None:
        """Cut the line instead of replying to the next `count` requests that contain `marker`."""
        self._marker, self._num_to_lose = marker, count

    def hold_replies(self) -> None:
        """Keep replies back until `let_go`."""
        self._flowing.clear()

    def let_go(self) -> None:
        """Deliver what was held."""
        self._flowing.set()

    async def close(self) -> None:
        """Stop listening. Lines end when their clients leave."""
        assert self._listener is not None
        self._flowing.set()
        self._listener.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self._server_port)
        is_doomed = asyncio.Event()
        try:
            async with asyncio.TaskGroup() as pumps:
                pumps.create_task(self._pump_requests(reader, up_writer, is_doomed))
                pumps.create_task(self._pump_replies(up_reader, writer, is_doomed))
        except* (_Hangup, ConnectionError):
            pass
        finally:
            writer.close()
            up_writer.close()

    async def _pump_requests(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, is_doomed: asyncio.Event
    ) -> None:
        while chunk := await reader.read(_CHUNK_BYTES):
            if self._num_to_lose and self._marker in chunk:
                self._num_to_lose -= 1
                is_doomed.set()
            writer.write(chunk)
            await writer.drain()
        raise _Hangup

    async def _pump_replies(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, is_doomed: asyncio.Event
    ) -> None:
        while chunk := await reader.read(_CHUNK_BYTES):
            if is_doomed.is_set():
                self.num_lost += 1
                break
            await self._flowing.wait()
            writer.write(chunk)
            await writer.drain()
        raise _Hangup
