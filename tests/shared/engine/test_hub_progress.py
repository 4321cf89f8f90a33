"""A download says how far it is, and ends when nobody waits for it."""

import signal
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from shared.engine import hub_progress
from shared.engine.hub_progress import Progress, Stopped, bar_class
from tests.e2e.processes import eventually
from tests.hub import Hub, Repository, piece_sizes
from tests.hub_machine import Machine
from tests.tiny_models import save_llama

NAME = "org/tiny"
WEIGHTS = "model.safetensors"


def test_bytes_are_logged_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of one bar: the library has others of the same bytes."""
    monkeypatch.setattr(hub_progress, "_PROGRESS_EVERY_S", 0.0)
    bar = bar_class(Progress())
    with capture_logs() as logs:
        bar(name="huggingface_hub.snapshot_download.transfer", total=9).update(3)
        on_disk = bar(name="huggingface_hub.snapshot_download", total=9)
        on_disk.update(4)
        on_disk.update(5)
    assert [(line["done_bytes"], line["total_bytes"]) for line in logs] == [(4, 9), (9, 9)]
    assert {line["event"] for line in logs} == {"model_download_progress"}


def test_a_stopped_download_ends_at_its_next_chunk(capfd: pytest.CaptureFixture[str]) -> None:
    """And shows no bar before."""
    progress = Progress()
    bar = bar_class(progress)(total=9)
    bar.update(1)
    progress.stop()
    with pytest.raises(Stopped):
        bar.update(1)
    bar.close()
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_a_signal_does_not_wait_for_the_file_in_flight(tmp_path: Path) -> None:
    """The file has no end; the process has, and leaves no piece of it."""
    model = save_llama(tmp_path / "model")
    with Hub({NAME: Repository.of(model)}, endless=WEIGHTS) as hub:
        machine = Machine(tmp_path / "home", hub)
        process = machine.start(NAME)
        try:
            eventually(lambda: any(piece_sizes(machine.home)), timeout_s=30)
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=20)
        finally:
            process.kill()
            process.communicate()
    assert process.returncode == 0
    assert piece_sizes(machine.home) == []
