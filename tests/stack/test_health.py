import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import fakeredis
import msgspec
import pytest

from shared.protocol.keys import Keys
from shared.protocol.workers import WorkerStatus
from stack.health import HealthConfig, Role, gateway_is_ready, is_well, ready_workers

KEYS = Keys()


def status(worker_id: str, **changes: object) -> WorkerStatus:
    role = worker_id.partition(":")[0]
    plain = WorkerStatus(worker_id, role, "m", max_model_len=8, vocab_size=4, started_ms=1_000)
    return msgspec.structs.replace(plain, **changes)


@pytest.fixture
def gateway() -> Iterator[tuple[str, list[int]]]:
    """An HTTP server whose `/ready` answers with the last status of the list."""
    answers = [200]

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(answers[-1] if self.path == "/ready" else 404)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Quiet."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", answers
    server.shutdown()
    thread.join()
    server.server_close()


async def test_only_workers_with_a_fresh_heartbeat_count() -> None:
    """Not the ones that are gone, drain, are of an earlier run, or cannot be read."""
    client = fakeredis.FakeAsyncRedis()
    entries = {
        "target:a": status("target:a"),
        "target:b": status("target:b", is_draining=True),
        "target:c": status("target:c", started_ms=10),
        "draft:d": status("draft:d"),
    }
    for worker_id, entry in entries.items():
        await client.sadd(KEYS.workers, worker_id)
        await client.set(KEYS.heartbeat(worker_id), msgspec.json.encode(entry))
    await client.sadd(KEYS.workers, "target:gone", "target:odd")
    await client.set(KEYS.heartbeat("target:odd"), b"?")
    counts = await ready_workers(client, KEYS, since_ms=1_000)
    assert counts == {"target": 1, "draft": 1}
    await client.aclose()


async def test_the_gateway_is_asked_over_http(gateway: tuple[str, list[int]]) -> None:
    """200 is well; anything else, or nobody there, is not."""
    url, answers = gateway
    assert await is_well(HealthConfig(role=Role.GATEWAY, url=url))
    answers.append(503)
    assert not await is_well(HealthConfig(role=Role.GATEWAY, url=url))


def test_a_gateway_that_is_not_there_is_not_ready() -> None:
    """No exception, no wait."""
    assert not gateway_is_ready("http://127.0.0.1:9")


async def test_a_worker_is_not_well_without_a_server() -> None:
    """The question ends by itself."""
    config = HealthConfig(role=Role.TARGET, redis_url="redis://127.0.0.1:9/0")
    assert not await is_well(config)
