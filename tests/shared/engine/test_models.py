"""Where a model is computed: the GPU that was asked for, or a word about why not."""

from pathlib import Path

import pytest
import torch

from shared.common.errors import ConfigError
from shared.engine.models import load_model, render_plan
from shared.engine.settings import AbsentGpu
from tests.checkpoints import CONFIGS, save_checkpoint
from tests.settings import GPU_SETTINGS


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A tiny model of our own kind."""
    save_checkpoint(tmp_path, CONFIGS["llama"])
    return tmp_path


def pretend(monkeypatch: pytest.MonkeyPatch, *, capability: tuple[int, int] | None) -> None:
    """That torch sees such a GPU, or none."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: capability is not None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)


@pytest.mark.parametrize(
    ("capability", "message"),
    [
        (None, "--device is cuda: must be cpu here, torch sees no such GPU"),
        ((7, 5), "--device is cuda: must be a GPU of compute capability 8.0 or more, this one has"),
    ],
)
def test_a_gpu_that_cannot_be_used_is_refused(
    capability: tuple[int, int] | None,
    message: str,
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Before anything is read, for serving and for the plan."""
    pretend(monkeypatch, capability=capability)
    for act in (load_model, render_plan):
        with pytest.raises(ConfigError, match=message):
            act(model, GPU_SETTINGS)


def test_a_plan_is_made_for_our_own_decoders(tmp_path: Path) -> None:
    """What transformers computes is measured when it is loaded, and told so."""
    (tmp_path / "config.json").write_text('{"model_type": "gemma2"}')
    with pytest.raises(ConfigError, match=r"--plan is set: must be off .* transformers computes"):
        render_plan(tmp_path, GPU_SETTINGS, AbsentGpu(1 << 34, None))
