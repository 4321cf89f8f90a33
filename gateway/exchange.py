"""One HTTP request and its response: bounded reads, writes with a deadline, noticing who left."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Self

import msgspec
from starlette.datastructures import Headers, QueryParams
from starlette.types import Message, Receive, Scope, Send

from gateway.deadline import Deadline
from gateway.errors import ClientGone
from shared.common.errors import ClientError
from shared.protocol.limits import MAX_BODY_BYTES

BODY_TIMEOUT_S = 30.0
KEEP_ALIVE = b": keep-alive\n\n"
_STREAM_HEADERS = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # proxies would hold tokens back
)


class Exchange:
    """Wraps the three ASGI arguments.

    Args:
        scope: of the request.
        receive: for the body and the client's departure.
        send: for the response.
        send_deadline_s: how long the client may refuse to read before it counts as gone.
    """

    def __init__(
        self, scope: Scope, receive: Receive, send: Send, *, send_deadline_s: float
    ) -> None:
        self.headers = Headers(scope=scope)
        self.query = QueryParams(scope["query_string"])
        self.path: Mapping[str, str] = scope["path_params"]
        self._receive = receive
        self._send = send
        self._send_deadline_s = send_deadline_s
        self._writing = Deadline(send_deadline_s)
        self.was_slow = False

    async def body(self) -> bytes:
        """The whole body.

        Raises:
            ClientError: not JSON by its content type (415), too large (413) or too slow (408).
            ClientGone: the client left while sending.
        """
        kind = self.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            message = "the content type must be application/json"
            raise ClientError(message, code="unsupported_media_type", status=415)
        length = self.headers.get("content-length", "0")
        if length.isdecimal() and int(length) > MAX_BODY_BYTES:
            raise _too_large()
        try:
            async with asyncio.timeout(BODY_TIMEOUT_S):
                return await self._read()
        except TimeoutError:
            message = "the body did not arrive in time"
            raise ClientError(message, code="body_timeout", status=408) from None

    async def _read(self) -> bytes:
        parts: list[bytes] = []
        size_bytes = 0
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientGone("while sending the body")
            part = message.get("body", b"")
            size_bytes += len(part)
            if size_bytes > MAX_BODY_BYTES:
                raise _too_large()
            parts.append(part)
            if not message.get("more_body", False):
                return b"".join(parts)

    @asynccontextmanager
    async def while_connected(self) -> AsyncIterator[None]:
        """A block that ends with ClientGone when the client leaves. Only after `body`."""
        try:
            async with Departure(self._receive):
                yield
        finally:
            self._writing.close()

    async def respond(self, data: bytes, *, status: int = 200) -> None:
        """Send a whole JSON response."""
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(data)).encode()),
        ]
        await self._send({"type": "http.response.start", "status": status, "headers": headers})
        await self._write({"type": "http.response.body", "body": data})

    async def start_stream(self) -> None:
        """Send the status and headers of server-sent events."""
        headers = list(_STREAM_HEADERS)
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})

    async def write(self, data: bytes) -> None:
        """Send a part of the stream, while connected; waits while the client does not read.

        Raises:
            ClientGone: it did not read for `send_deadline_s`.
        """
        try:
            await self._writing.wait(
                self._send({"type": "http.response.body", "body": data, "more_body": True})
            )
        except TimeoutError:
            self.was_slow = True
            raise ClientGone("it does not read") from None

    async def end(self) -> None:
        """Complete the stream."""
        await self._write({"type": "http.response.body", "body": b""})

    async def _write(self, message: Message) -> None:
        try:
            async with asyncio.timeout(self._send_deadline_s):
                await self._send(message)
        except TimeoutError:
            self.was_slow = True
            raise ClientGone("it does not read") from None


class Departure:
    """Watches for the client's departure while its block runs, and ends the block then."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._is_gone = False
        self._body: asyncio.Task[object] | None = None
        self._watcher: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._body = asyncio.current_task()
        # Not a TaskGroup: that would wrap every error of the block in a group.
        self._watcher = asyncio.create_task(self._watch())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        assert self._watcher is not None
        assert self._body is not None
        self._watcher.cancel()
        await asyncio.wait([self._watcher])
        if self._is_gone:
            is_ours = self._body.uncancel() == 0
            if kind is asyncio.CancelledError and is_ours:
                raise ClientGone("it closed the connection") from error

    async def _watch(self) -> None:
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                break
        assert self._body is not None
        self._is_gone = True
        self._body.cancel()


def encode(value: msgspec.Struct) -> bytes:
    """JSON of a response body."""
    return msgspec.json.encode(value)


def _too_large() -> ClientError:
    message = f"the body must be at most {MAX_BODY_BYTES} bytes"
    return ClientError(message, code="too_large", status=413)
