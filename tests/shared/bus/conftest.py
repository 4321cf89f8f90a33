"""Workers and proxies for the tests of the bus."""

from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from tests.bus_worker import BusWorker
from tests.conftest import ConnectBus
from tests.proxy import Proxy
from tests.server import Server

StartWorker = Callable[..., Awaitable[BusWorker]]


@pytest.fixture
async def start_worker(connect_bus: ConnectBus) -> StartWorker:
    """A function that starts a worker with a heartbeat, by id."""

    async def start(worker_id: str, **options: str) -> BusWorker:
        return await BusWorker.start(await connect_bus(worker_id, **options))

    return start


@pytest.fixture
async def worker(start_worker: StartWorker) -> BusWorker:
    """Worker `target:a`."""
    return await start_worker("target:a")


@pytest.fixture
async def other(start_worker: StartWorker) -> BusWorker:
    """Worker `target:b`."""
    return await start_worker("target:b")


@pytest.fixture
async def proxy(valkey_server: Server, valkey_url: str) -> AsyncIterator[Proxy]:
    """A proxy before the common server, which is empty."""
    proxy = await Proxy(valkey_server.port).start()
    yield proxy
    await proxy.close()
