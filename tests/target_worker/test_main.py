"""The program itself: a real process, its exit statuses, its signals."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from shared.bus.fleet import Fleet
from tests.bus_worker import until
from tests.conftest import ConnectBus
from tests.server import Server
from tests.target_worker.engines import tokens_of
from tests.target_worker.serving import Client, body, expected, tiny_model

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model directory."""
    return tiny_model(tmp_path_factory.mktemp("models"))


def run(*flags: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "target_worker", *flags],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.e2e
async def test_a_process_serves_and_drains(
    valkey_server: Server, connect_bus: ConnectBus, model: Path
) -> None:
    """Ready, one job, SIGTERM: status 0, and every line of its log is one event."""
    client = Client(await connect_bus("gateway:c"))
    process = run("--model", str(model), "--redis-url", valkey_server.url)
    try:
        await client.submit("job")
        assert tokens_of(await client.finish("job")) == expected(model, body())
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 0
    events = [line for line in log.splitlines() if '"event"' in line]
    for event in ("worker_ready", "job_finished", "drained"):
        assert sum(f'"event":"{event}"' in line for line in events) == 1

    async def gone() -> bool:
        return not await Fleet(client.bus).workers()

    await until(gone)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "word"),
    [
        (["--speculation", "maybe"], "auto"),
        (["--num-speculative-tokens", "17"], "16"),
        (["--plan", "80 GiB"], "here"),
        (["--model", "/nowhere"], "/nowhere"),
        (["--redis-url", "http://127.0.0.1"], "redis"),
        (["--max-model-len", "4096", "--model", "MODEL"], "512"),
    ],
    ids=["speculation", "K", "plan", "model", "url", "context"],
)
def test_a_bad_value_exits_with_2_in_one_line(flags: list[str], word: str, model: Path) -> None:
    """The line names the key and what is allowed."""
    flags = [str(model) if flag == "MODEL" else flag for flag in flags]
    process = run(*(flags if "--model" in flags else [*flags, "--model", str(model)]))
    _, log = process.communicate(timeout=60)
    assert process.returncode == 2
    last = log.splitlines()[-1]
    assert last.startswith("target_worker: ")
    assert word in last
