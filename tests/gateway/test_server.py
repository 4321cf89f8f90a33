import asyncio
import json
import os
import signal
import socket as sockets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from websockets.asyncio.client import connect

from shared.bus.connection import Bus
from shared.protocol.keys import Keys
from tests.gateway.conftest import StartGateway, eventually
from tests.gateway.scripted import ScriptedTarget
from tests.gateway.scripts import CHAT, RESPONSE, TEXT, Gated, closed, until
from tests.server import Server

pytestmark = pytest.mark.server

ROOT = Path(__file__).resolve().parents[2]


async def test_a_drain_finishes_what_was_begun(
    start_gateway: StartGateway, target: ScriptedTarget
) -> None:
    """Not ready, nothing new, the rest to its end; then the server is gone."""
    served = await start_gateway(drain_s=20.0)
    target.script = script = Gated()
    async with httpx.AsyncClient(base_url=served.url) as client:
        stream = client.build_request("POST", "/v1/chat/completions", json=CHAT | {"stream": True})
        response = await client.send(stream, stream=True)
        served.gateway.stop()
        await eventually(lambda: served.gateway.admission.is_draining)
        ready = await client.get("/ready")
        assert (ready.status_code, ready.json()["reason"]) == (503, "draining")
        refused = await client.post("/v1/chat/completions", json=CHAT)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
        assert (await client.get("/health")).status_code == 200
        script.gate.set()
        assert "[DONE]" in (await response.aread()).decode()
        await response.aclose()
    await asyncio.wait_for(served.task, 10.0)


async def test_a_drain_closes_idle_sockets_at_once_and_busy_ones_when_done(
    start_gateway: StartGateway, target: ScriptedTarget
) -> None:
    """1012: come back, elsewhere. New connections and new requests are refused meanwhile."""
    served = await start_gateway(drain_s=20.0)
    target.script = script = Gated()
    url = f"ws://{served.address}/v1/responses"
    async with connect(url) as idle, connect(url) as busy:
        await busy.send(json.dumps({"type": "response.create", **RESPONSE}))
        await eventually(lambda: target.turns)
        served.gateway.stop()
        assert await closed(idle) == 1012
        await busy.send(json.dumps({"type": "response.create", **RESPONSE, "stream_id": "b"}))
        refused = (await until(busy, "error"))[-1]
        assert refused["error"]["code"] == "draining"
        script.gate.set()
        await until(busy, "response.completed")
        assert await closed(busy) == 1012


async def test_what_a_drain_cannot_finish_goes_on_elsewhere(
    start_gateway: StartGateway, target: ScriptedTarget
) -> None:
    """The limit cuts connections, not jobs: another gateway has the rest."""
    served, other = await start_gateway(drain_s=0.1), await start_gateway()
    target.script = script = Gated()
    async with connect(f"ws://{served.address}/v1/responses") as socket:
        await socket.send(json.dumps({"type": "response.create", **RESPONSE}))
        created = json.loads(await socket.recv())["response"]["id"]
        await eventually(lambda: target.turns)
        served.gateway.stop()
        assert await closed(socket) == 1012
    await asyncio.wait_for(served.task, 10.0)
    script.gate.set()
    async with httpx.AsyncClient() as client:
        rest = await client.get(f"{other.url}/v1/responses/{created}", params={"stream": "true"})
    assert '"status":"completed"' in rest.text
    assert not target.turns[0].is_cancelled


async def test_a_server_that_restarts_in_the_middle_costs_nothing_but_time(
    own_server: Server, start_gateway: StartGateway
) -> None:
    """The stream goes on where it was; meanwhile the gateway lives."""
    served = await start_gateway(redis_url=own_server.url)
    bus = await Bus.connect(own_server.url, keys=Keys(), worker_id="target:scripted")
    target = ScriptedTarget(bus, script := Gated())
    async with target.running(), httpx.AsyncClient(base_url=served.url, timeout=60.0) as client:
        await until_ready(client)
        asking = asyncio.create_task(client.post("/v1/chat/completions", json=CHAT))
        await eventually(lambda: target.turns)
        await asyncio.to_thread(own_server.restart)
        assert (await client.get("/health")).status_code == 200
        script.gate.set()
        found = await asking
    await bus.close()
    assert found.json()["choices"][0]["message"]["content"] == TEXT


async def until_ready(client: httpx.AsyncClient) -> None:
    """Wait until requests would be served."""
    async with asyncio.timeout(10.0):
        while (await client.get("/ready")).status_code != 200:
            await asyncio.sleep(0.01)


def run(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Run Python to its end."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_gateway_needs_no_torch() -> None:
    """Its machine has neither torch nor transformers."""
    code = (
        "import sys, gateway.__main__; print({'torch', 'transformers', 'numpy'} & {*sys.modules})"
    )
    found = run("-c", code)
    assert (found.stdout.strip(), found.stderr) == ("set()", "")


def test_help_fits_a_screen() -> None:
    """24 lines of 100 columns, every flag with its default."""
    lines = run("-m", "gateway", "--help").stdout.splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 100
    assert "GATEWAY_HOST" in "\n".join(lines)


@pytest.mark.parametrize(
    ("flag", "value"), [("--port", "x"), ("--max-streams", "0"), ("--drain-s", "-1")]
)
def test_a_bad_setting_is_named(flag: str, value: str) -> None:
    """One line, status 2."""
    found = run("-m", "gateway", flag, value)
    assert found.returncode == 2
    assert flag in found.stderr
    assert len(found.stderr.splitlines()) == 1


@pytest.fixture
def process(valkey_url: str, tmp_path: Path) -> Iterator[tuple["subprocess.Popen[bytes]", Path]]:
    """A gateway as users start it, and its log."""
    log = tmp_path / "gateway.log"
    with log.open("wb") as stream:
        started = subprocess.Popen(
            [sys.executable, "-m", "gateway", "--port", "0", "--redis-url", valkey_url],
            cwd=ROOT,
            stderr=stream,
        )
    yield started, log
    if started.poll() is None:
        started.kill()
    started.wait()


async def test_sigterm_ends_the_process_with_0(
    process: tuple["subprocess.Popen[bytes]", Path],
) -> None:
    """A drain with nothing to do takes no time."""
    started, log = process
    await eventually(lambda: "gateway_ready" in log.read_text() or started.poll() is not None, 30)
    assert "gateway_ready" in log.read_text()
    started.send_signal(signal.SIGTERM)
    await eventually(lambda: started.poll() is not None, 20)
    assert started.returncode == 0
    assert "Traceback" not in log.read_text()


def test_an_address_in_use_is_a_wrong_setting(served_port: int, valkey_url: str) -> None:
    """Status 2 and one line."""
    found = run("-m", "gateway", "--port", str(served_port), "--redis-url", valkey_url)
    assert found.returncode == 2
    assert "cannot listen" in found.stderr


@pytest.fixture
def served_port() -> Iterator[int]:
    """A port that somebody listens on."""
    with sockets.create_server(("127.0.0.1", 0)) as listening:
        yield listening.getsockname()[1]
