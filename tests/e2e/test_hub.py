"""Workers whose models come from a hub: they serve under the last part of the id."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.processes import READY_S, eventually
from tests.e2e.system import System, checked_tokens
from tests.hub import COMMIT, Hub, Repository, piece_sizes
from tests.tiny_models import save_llama

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

BODY = {
    "model": "tiny",
    "prompt": "Once upon a time",
    "max_tokens": 12,
    "seed": 5,
    "ignore_eos": True,
}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A target and a drafter on a hub, which processes that are started now know."""
    models = {"org/tiny": save_llama(tmp_path / "a"), "org/tiny-draft": save_llama(tmp_path / "b")}
    with Hub({name: Repository.of(directory) for name, directory in models.items()}) as served:
        monkeypatch.setenv("HF_ENDPOINT", served.url)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield served


@pytest.mark.usefixtures("hub")
def test_both_workers_fetch_their_models(system: System) -> None:
    """The target under the name of its repository, the drafter at a commit; then they serve."""
    workers = [
        system.start("draft_worker", "--model", f"org/tiny-draft@{COMMIT}"),
        system.start("target_worker", "--model", "org/tiny", "--speculation", "on"),
    ]
    for worker in workers:
        worker.wait_ready()
        assert COMMIT in worker.log.read_text()
    job_id = system.submit(BODY)
    system.wait_end([job_id])
    assert len(checked_tokens(system.log(job_id))) == BODY["max_tokens"]
    assert all(worker.stop() == 0 for worker in workers)


@pytest.mark.parametrize("role", ["target_worker", "draft_worker"])
def test_a_worker_may_be_stopped_while_it_fetches(
    role: str, system: System, hub: Hub, tmp_path: Path
) -> None:
    """At once, and without pieces of files in the cache."""
    hub.endless = "model.safetensors"
    worker = system.start(role, "--model", "org/tiny")
    eventually(lambda: any(piece_sizes(tmp_path)), READY_S)
    assert worker.stop() == 0
    assert piece_sizes(tmp_path) == []
    assert "Traceback" not in worker.log.read_text()
