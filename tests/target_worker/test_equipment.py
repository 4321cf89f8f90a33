"""Settings and model together: what cannot work is refused before the first job."""

from pathlib import Path

import pytest

from shared.common.clock import SystemClock
from shared.common.errors import ConfigError
from shared.config.model import CacheDtype
from target_worker.config import Config
from target_worker.equipment import build_engine, equip
from target_worker.goodput import Policy
from tests.target_worker.serving import NAME, config, tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model directory."""
    return tiny_model(tmp_path_factory.mktemp("models"))


def test_the_directorys_name_is_served(model: Path) -> None:
    """With the model's own context, and its end token."""
    served = equip(config(model)).served
    assert (served.name, served.max_model_len, served.eos_token_ids) == (NAME, 512, (0,))


def test_the_context_is_bounded_by_the_cache(model: Path) -> None:
    """So that one sequence alone always fits."""
    assert equip(config(model, kv_cache_tokens=100)).served.max_model_len == 96
    assert equip(config(model, max_model_len=50)).served.max_model_len == 50


def test_a_context_that_cannot_be_served_is_refused(model: Path) -> None:
    """More than the model has."""
    with pytest.raises(ConfigError, match="--max-model-len"):
        equip(config(model, max_model_len=513))


def test_a_cache_of_eight_bits_is_refused_on_a_cpu(model: Path) -> None:
    """The flag reaches the engine, which says by its name what is wrong."""
    with pytest.raises(ConfigError, match="--kv-cache-dtype is fp8: must be auto on a CPU"):
        equip(config(model, kv_cache_dtype=CacheDtype.FP8))


def test_a_directory_without_a_model_is_refused(tmp_path: Path) -> None:
    """One line for the operator."""
    with pytest.raises(ConfigError):
        equip(config(tmp_path))


def test_without_speculation_no_guess_is_wanted(model: Path) -> None:
    """Policy off, or K = 0."""
    assert equip(config(model, speculation=Policy.OFF)).served.num_speculative_tokens == 0
    equipment = equip(config(model, num_speculative_tokens=0))
    engine = build_engine(
        config(model, num_speculative_tokens=0), equipment, "target:a", SystemClock()
    )
    assert engine.num_jobs == 0


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"max_batched_tokens": 8}, "--max-batched-tokens"),
        ({"kv_cache_tokens": 16, "block_size": 32}, "--kv-cache-tokens"),
        ({"kv_cache_tokens": 79, "max_model_len": 65}, "--max-model-len is 65: .*, 64 in whole"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(fields: dict[str, int], name: str) -> None:
    """The message names the flag."""
    with pytest.raises(ValueError, match=name):
        config(Path(), **fields)


def test_the_heartbeat_stops_before_the_process() -> None:
    """A stall costs the lease first, whatever the limit is."""
    assert Config(model=".", hang_s=1.0).stall_s == 0.5
    assert Config(model=".", hang_s=60.0).stall_s == 4.0
