"""What `--plan` prints, and for which GPU."""

from pathlib import Path

import pytest
import torch

from shared.common.errors import ConfigError
from target_worker.config import Config
from target_worker.planning import planned

MODEL = Path(__file__).parents[2] / "models" / "storyteller"


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def config_of(*, gib: float = 0.0, bandwidth: float = 0.0, device: str = "cpu") -> Config:
    return Config(
        model=str(MODEL),
        redis_url="redis://127.0.0.1",
        device=device,
        plan=True,
        plan_memory_gib=gib,
        plan_bandwidth=bandwidth,
    )


@pytest.mark.parametrize("device", ["cpu", "cuda", "cuda:3"])
def test_a_gpu_that_is_not_here_is_planned_for(device: str) -> None:
    """Whatever this machine has, with a GPU's defaults, and the floor of a step if it is known."""
    plan = planned(config_of(gib=24.0, bandwidth=900.0, device=device))
    assert "device" in plan
    assert "24.00 GiB" in plan
    assert "tokens that fit" in plan
    assert "900 GB/s" in plan
    assert "GB/s" not in planned(config_of(gib=24.0, device=device))


def test_more_memory_holds_more_tokens() -> None:
    """And nothing else grows with it."""
    small, large = (planned(config_of(gib=gib)).splitlines() for gib in (24.0, 80.0))
    differ = [one.split("  ")[0] for one, other in zip(small, large, strict=True) if one != other]
    assert "weights" not in differ
    assert "cache" in differ


def test_without_any_gpu_the_memory_has_to_be_said() -> None:
    """By the flag, or the GPU that was asked for is missed."""
    with pytest.raises(ConfigError, match="--plan-memory-gib is 0: must be the memory of the GPU"):
        planned(config_of())
    with pytest.raises(ConfigError, match="--device is cuda: must be cpu here"):
        planned(config_of(device="cuda"))


def test_a_card_that_is_not_here_is_for_plans_alone() -> None:
    """What would be ignored is refused."""
    with pytest.raises(ValueError, match="--plan-memory-gib is 24: must be 0 without --plan"):
        Config(model=str(MODEL), redis_url="redis://127.0.0.1", plan_memory_gib=24.0)
    with pytest.raises(ValueError, match="--plan-bandwidth is 900: must be 0 without"):
        config_of(bandwidth=900.0)
