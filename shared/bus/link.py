"""One connection to the server, with one caller at a time and no second tries.

On top of redis-py's Connection (handshake, TLS, parsing), below everything else. redis-py's own
client retries up to 10 times by default, which turns a lost reply into a second XADD and a blocking
read into a minute of silence; here a call is sent once, under one deadline.
"""

import asyncio
from collections.abc import Iterable
from typing import Any

import hiredis
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ResponseError

Argument = str | bytes | int
Command = tuple[Argument, ...]
Reply = Any  # RESP2: bytes, int, None, a list of replies, or (where said so) a ResponseError


def pack(commands: Iterable[Command]) -> bytes:
    """The bytes of a pipeline."""
    pieces = [hiredis.pack_command(command) for command in commands]  # type: ignore[arg-type] # its stub allows one argument only
    return b"".join(pieces)


class Link:
    """Sends commands and reads their replies, in order."""

    def __init__(self, connection: AbstractConnection) -> None:
        self._connection = connection

    async def exchange(self, payload: bytes, num_replies: int, *, timeout_s: float) -> list[Reply]:
        """Send packed commands and read one reply each; connects first where needed.

        Cancelling or failing closes the connection, so no reply can reach the next caller.

        Returns:
            The replies; a refused command's is the ResponseError itself.

        Raises:
            RedisError, OSError: the connection failed; what was sent may or may not have been done.
        """
        connection = self._connection
        try:
            async with asyncio.timeout(timeout_s):
                await connection.send_packed_command(payload, check_health=False)
                return [await self._read() for _ in range(num_replies)]
        except BaseException:
            await connection.disconnect(nowait=True)
            raise

    async def close(self) -> None:
        """Close the connection. The next exchange opens a new one."""
        await self._connection.disconnect()

    async def _read(self) -> Reply:
        try:
            return await self._connection.read_response()
        except ResponseError as error:
            return error
