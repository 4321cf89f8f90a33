"""What `--plan` prints, and for which GPU."""

from pathlib import Path

import pytest
import torch

from shared.common.errors import ConfigError
from shared.config.flags import load
from target_worker.config import Config
from target_worker.planning import planned

MODEL = Path(__file__).parents[2] / "models" / "storyteller"


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def config_of(plan: str, *, device: str = "cpu") -> Config:
    return Config(model=str(MODEL), redis_url="redis://127.0.0.1", device=device, plan=plan)


@pytest.mark.parametrize("device", ["cpu", "cuda", "cuda:3"])
def test_a_gpu_that_is_not_here_is_planned_for(device: str) -> None:
    """Whatever this machine has, with a GPU's defaults, and the floor of a step if it is known."""
    plan = planned(config_of("24@900", device=device))
    for words in ("24.00 GiB", "tokens that fit", "at 900 GB/s"):
        assert words in plan
    for unknown in ("24", "24@0", "24.5"):
        assert "GB/s" not in planned(config_of(unknown, device=device))


def test_more_memory_holds_more_tokens() -> None:
    """And weights are what they are."""
    small, large = (planned(config_of(plan)).splitlines() for plan in ("24", "80"))
    differ = [one.split("  ")[0] for one, other in zip(small, large, strict=True) if one != other]
    assert "weights" not in differ
    assert "cache" in differ


def test_without_any_gpu_the_memory_has_to_be_said() -> None:
    """Or the GPU that was asked for is missed."""
    with pytest.raises(ConfigError, match="--plan is here: must be the GiB of the GPU to plan for"):
        planned(config_of("here"))
    with pytest.raises(ConfigError, match="--device is cuda: must be cpu here"):
        planned(config_of("here", device="cuda"))


@pytest.mark.parametrize(
    ("flags", "plan"), [([], ""), (["--plan"], "here"), (["--plan", "80@3000"], "80@3000")]
)
def test_the_flag_may_stand_alone(flags: list[str], plan: str) -> None:
    """Then it is about this machine."""
    argv = [*flags, "--model", "m", "--redis-url", "redis://127.0.0.1"]
    config = load(Config, prog="target_worker", description="", argv=argv, env={})
    assert config.plan == plan


@pytest.mark.parametrize(
    "plan", ["there", "80@", "@80", "80@3000@1", "-80", "1e3", "80 GiB", "8.", "nan"]
)
def test_what_is_no_gpu_is_refused(plan: str, capsys: pytest.CaptureFixture[str]) -> None:
    """In one line that names the flag."""
    argv = [f"--plan={plan}", "--model", "m", "--redis-url", "redis://127.0.0.1"]
    with pytest.raises(SystemExit, match="2"):
        load(Config, prog="target_worker", description="", argv=argv, env={})
    assert capsys.readouterr().err.startswith(f"target_worker: --plan is {plan!r}: must be text")
