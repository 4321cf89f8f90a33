"""uvicorn's WebSocket protocol with the bounds it lacks.

uvicorn 0.54 counts the bytes of an unfinished message but not its fragments, logs a traceback for
each frame that is not UTF-8, and cannot close a connection whose client does not read.
"""

import asyncio
from typing import Any

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import Frame

MAX_FRAGMENTS = 4_096  # what the websockets library allows in its own server
ABORT_S = 15.0  # after our close frame; uvicorn's own close waits for the buffer to drain
CLOSED = frozenset({"websocket.close"})


class BoundedWebSocket(WebSocketsSansIOProtocol):
    """See the module."""

    def handle_cont(self, event: Frame) -> None:
        """Close with 1009 after too many fragments of one message."""
        if len(self.frames) >= MAX_FRAGMENTS:
            self.frames = []
            self.conn.send_close(1009, "too many fragments")
            self.handle_parser_exception()
            return
        super().handle_cont(event)

    def send_receive_event_to_app(self) -> None:
        """Close with 1007 on what is not UTF-8, without a traceback."""
        if self.curr_msg_data_type == "text":
            try:
                b"".join(self.frames).decode()
            except UnicodeDecodeError:
                self.frames = []
                self.conn.send_close(1007)
                self.handle_parser_exception()
                return
        super().send_receive_event_to_app()

    async def send(self, message: Any) -> None:  # noqa: ANN401 - ASGI's own type is private
        """Let a close frame pass a full buffer, and cut the connection if nobody takes it."""
        if message["type"] in CLOSED:
            self.writable.set()
            asyncio.get_running_loop().call_later(ABORT_S, self.transport.abort)
        await super().send(message)
