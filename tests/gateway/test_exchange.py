import asyncio

import pytest
from starlette.types import Message, Scope

from gateway.errors import ClientGone
from gateway.exchange import Exchange
from shared.common.errors import ClientError
from shared.protocol.limits import MAX_BODY_BYTES


class Client:
    """The other end of one request: what it sends, and how fast it reads."""

    def __init__(self, *messages: Message, reads: bool = True) -> None:
        self.sent: list[Message] = []
        self._messages = list(messages)
        self._reads = asyncio.Event()
        if reads:
            self._reads.set()

    async def receive(self) -> Message:
        """ASGI's receive."""
        if not self._messages:
            await asyncio.Event().wait()
        return self._messages.pop(0)

    async def send(self, message: Message) -> None:
        """ASGI's send."""
        await self._reads.wait()
        self.sent.append(message)


GONE: Message = {"type": "http.disconnect"}


def part(body: bytes, *, is_last: bool = True) -> Message:
    """A piece of a body."""
    return {"type": "http.request", "body": body, "more_body": not is_last}


def make(client: Client, *headers: tuple[bytes, bytes]) -> Exchange:
    """The exchange with a client."""
    kind = (b"content-type", b"application/json; charset=utf-8")
    scope: Scope = {"headers": [kind, *headers], "query_string": b"", "path_params": {}}
    return Exchange(scope, client.receive, client.send, send_deadline_s=0.02)


async def test_a_body_comes_in_pieces() -> None:
    """They are put together."""
    assert await make(Client(part(b"a", is_last=False), part(b"b"))).body() == b"ab"


async def test_a_body_that_is_too_large_is_refused_before_it_is_read() -> None:
    """By what it says of itself."""
    exchange = make(Client(), (b"content-length", str(MAX_BODY_BYTES + 1).encode()))
    with pytest.raises(ClientError) as caught:
        await exchange.body()
    assert caught.value.status == 413


async def test_a_body_that_never_ends_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """408 for clients that send a byte now and then."""
    monkeypatch.setattr("gateway.exchange.BODY_TIMEOUT_S", 0.01)
    with pytest.raises(ClientError) as caught:
        await make(Client(part(b"a", is_last=False))).body()
    assert caught.value.status == 408


async def test_a_client_that_leaves_ends_the_block() -> None:
    """Whatever the block waits for."""
    with pytest.raises(ClientGone):
        async with make(Client(GONE)).while_connected():
            await asyncio.Event().wait()


async def test_a_block_that_ends_first_is_not_disturbed() -> None:
    """Its own errors come out as they are."""
    async with make(Client()).while_connected():
        await asyncio.sleep(0)
    with pytest.raises(KeyError):
        async with make(Client()).while_connected():
            raise KeyError


async def test_a_cancelled_block_is_cancelled() -> None:
    """A server that shuts down is no client that leaves."""

    async def serve() -> None:
        async with make(Client()).while_connected():
            await asyncio.Event().wait()

    serving = asyncio.create_task(serve())
    await asyncio.sleep(0.01)
    serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await serving


async def test_a_client_that_does_not_read_counts_as_gone() -> None:
    """After its time."""
    exchange = make(Client(reads=False))
    with pytest.raises(ClientGone):
        await exchange.write(b"x")
    assert exchange.was_slow
