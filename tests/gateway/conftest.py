"""A gateway on loopback over a real server, a scripted target behind it."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any, NamedTuple

import pytest
from openai import AsyncOpenAI

from gateway.config import GatewayConfig
from gateway.server import Gateway, new_gateway_id, open_gateway
from tests.conftest import ConnectBus
from tests.gateway.scripted import ScriptedTarget


class Running(NamedTuple):
    """A gateway that serves."""

    gateway: Gateway
    address: str  # host:port
    task: "asyncio.Task[None]"
    client: AsyncOpenAI  # the official one, as it is; it does not hide failures by trying again

    @property
    def url(self) -> str:
        """For HTTP."""
        return f"http://{self.address}"


StartGateway = Callable[..., Awaitable[Running]]


@pytest.fixture
async def start_gateway(valkey_url: str) -> AsyncIterator[StartGateway]:
    """A function that starts a gateway with given settings; all are stopped after the test."""
    async with AsyncExitStack() as stack:

        async def start(**settings: Any) -> Running:  # noqa: ANN401 - fields of GatewayConfig
            config = GatewayConfig(**{"redis_url": valkey_url, "drain_s": 0.0, **settings})
            gateway = await stack.enter_async_context(
                open_gateway(config, gateway_id=new_gateway_id())
            )
            listening = socket.create_server(("127.0.0.1", 0))
            host, port = listening.getsockname()
            task = asyncio.create_task(gateway.run([listening]))

            async def stop() -> None:
                gateway.stop()
                await task

            stack.push_async_callback(stop)
            await eventually(lambda: gateway.server.started or task.done())
            base_url = f"http://{host}:{port}/v1"
            client = AsyncOpenAI(base_url=base_url, api_key="unused", max_retries=0)
            await stack.enter_async_context(client)
            return Running(gateway, f"{host}:{port}", task, client)

        yield start


@pytest.fixture
async def target(connect_bus: ConnectBus) -> AsyncIterator[ScriptedTarget]:
    """A live target that tells its story to everybody."""
    scripted = ScriptedTarget(await connect_bus("target:scripted"))
    async with scripted.running():
        yield scripted


@pytest.fixture
async def served(start_gateway: StartGateway, target: ScriptedTarget) -> Running:
    """A gateway with the default settings in front of the scripted target."""
    return await start_gateway()


async def eventually(condition: Callable[[], object], timeout_s: float = 10.0) -> None:
    """Wait until the condition holds.

    Raises:
        TimeoutError: it did not in time.
    """
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.005)
