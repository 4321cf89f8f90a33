"""What many tests need: a real server, a bus to it, and torch on one thread."""

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import redis
from hypothesis import settings

from shared.bus.connection import Bus
from shared.protocol.keys import Keys
from tests.server import Server

# The machines that run this are shared: how long an example takes says nothing about the code.
settings.register_profile("shared-machine", deadline=None)
settings.load_profile("shared-machine")

# More threads than cores wait for each other. Here, because torch reads it once, on import; the
# processes that tests start inherit it.
os.environ["OMP_NUM_THREADS"] = "1"

# Kernels for GPUs run in Triton's interpreter unless `make test-gpu` says otherwise. Here, because
# it has to be known before Triton is imported.
os.environ.setdefault("TRITON_INTERPRET", "1")

ConnectBus = Callable[..., Awaitable[Bus]]


@pytest.fixture(scope="session")
def device() -> str:
    """Where kernels run: on the GPU in `make test-gpu`, else in Triton's interpreter on the CPU."""
    return "cpu" if os.environ["TRITON_INTERPRET"] == "1" else "cuda"


@pytest.fixture(scope="session")
def valkey_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for all tests that do not hurt it."""
    server = Server(tmp_path_factory.mktemp("valkey")).start()
    yield server
    server.kill()


@pytest.fixture
def valkey_url(valkey_server: Server) -> str:
    """The URL of an empty server (it keeps the function library)."""
    with redis.Redis.from_url(valkey_server.url) as client:
        client.flushall()
    return valkey_server.url


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[Server]:
    """A server that the test may stop, kill and restart; what it has answered, it keeps."""
    server = Server(tmp_path / "valkey", appendfsync="always").start()
    yield server
    server.kill()


@pytest.fixture
async def connect_bus(valkey_url: str) -> AsyncIterator[ConnectBus]:
    """A function that connects a bus for a worker id; all are closed after the test."""
    async with AsyncExitStack() as stack:

        async def connect(
            worker_id: str = "target:a", *, url: str = valkey_url, deadline_s: float = 10.0
        ) -> Bus:
            bus = await Bus.connect(url, keys=Keys(), worker_id=worker_id, deadline_s=deadline_s)
            stack.push_async_callback(bus.close)
            return bus

        yield connect


@pytest.fixture
async def bus(connect_bus: ConnectBus) -> Bus:
    """The bus of worker `target:a`."""
    return await connect_bus("target:a")
