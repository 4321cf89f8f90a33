"""What a GPU cannot run is refused by name, before anything is loaded."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from kernels.gpu.attention_work import MAX_SEQUENCES
from kernels.gpu.verify_attention import CONFIGS as TILES_OF_KERNEL
from shared.common.errors import ConfigError
from shared.engine.config import ModelConfig
from shared.engine.gpu.loading import memory_plan, num_blocks_of
from shared.engine.gpu.memory import GIB, DecoderPlan
from shared.engine.gpu.requirements import HEAD_DIMS, MAX_GROUP_SIZE
from shared.engine.settings import MAX_GPU_SEQUENCES, ModelSettings
from tests.settings import GPU_SETTINGS

LLAMA: dict[str, object] = {
    "model_type": "llama",
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 128,
}


def plan(
    directory: Path, values: dict[str, int], settings: ModelSettings = GPU_SETTINGS
) -> DecoderPlan:
    """The plan of a directory that holds a config.json and nothing else."""
    (directory / "config.json").write_text(json.dumps(LLAMA | values))
    return memory_plan(ModelConfig.from_directory(directory), settings, 8 * GIB)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"head_dim": 48}, "config.json: head_dim is 48; allowed on a GPU: 32, 64, 96, 128, 256"),
        ({"head_dim": 512}, "config.json: head_dim is 512; allowed"),
        ({"hidden_size": 32}, "config.json: head_dim is 16; allowed"),
        (
            {"head_dim": 32, "num_attention_heads": 17, "num_key_value_heads": 1},
            "is 17 and num_key_value_heads is 1: 17 query heads a key head; allowed on a GPU: at",
        ),
        (
            {"hidden_size": 16_386, "head_dim": 32},
            "config.json: hidden_size is 16386; allowed on a GPU: at most 16384",
        ),
    ],
)
def test_a_model_that_the_kernels_cannot_run_is_refused(
    values: dict[str, int], message: str, tmp_path: Path
) -> None:
    """The field of its configuration, what it is, and what may be; nothing but that was read."""
    with pytest.raises(ConfigError) as error:
        plan(tmp_path, values)
    assert message in str(error.value)


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_what_is_allowed_has_a_plan(head_dim: int, tmp_path: Path) -> None:
    """And the kernel has tiles for it."""
    heads = {"num_attention_heads": MAX_GROUP_SIZE, "num_key_value_heads": 1}
    assert plan(tmp_path, heads | {"head_dim": head_dim}).config.head_dim == head_dim
    width = 1 << (head_dim - 1).bit_length()
    assert min(size for size, dim in TILES_OF_KERNEL if dim == width) == MAX_GROUP_SIZE


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block_size": 8}, "--block-size is 8: must be 16, 32, 64, 128, 256 on a GPU"),
        ({"max_sequences": 1_025}, "--max-num-seqs is 1025: must be at most 1024 on a GPU"),
        ({"max_model_len": 129}, "--max-model-len is 129: must be at most the model's own, 128"),
    ],
)
def test_settings_that_the_kernels_cannot_run_are_refused(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    """The flag, its value, and what may be."""
    with pytest.raises(ConfigError) as error:
        plan(tmp_path, {}, dataclasses.replace(GPU_SETTINGS, **changes))
    assert message in str(error.value)


@pytest.mark.parametrize("name", ["hidden_size", "intermediate_size"])
def test_rows_that_cannot_be_copied_as_tiles_are_refused_where_they_must_be(
    name: str, tmp_path: Path
) -> None:
    """Batch-invariant products read whole 16 bytes; others do not ask for them."""
    values = {"head_dim": 32, name: 100}
    assert plan(tmp_path, values).config.head_dim == 32
    settings = dataclasses.replace(GPU_SETTINGS, is_batch_invariant=True)
    with pytest.raises(ConfigError) as error:
        plan(tmp_path, values, settings)
    assert f"{name} is 100; allowed with --batch-invariant: multiples of 8" in str(error.value)
    assert plan(tmp_path, {"head_dim": 32}, settings).is_batch_invariant


@pytest.mark.parametrize("flag", ["--kv-cache-tokens", "--num-blocks"])
def test_a_cache_that_does_not_fit_is_refused_by_the_callers_flag(
    flag: str, tmp_path: Path
) -> None:
    """A draft worker counts blocks; the plan says what would fit."""
    settings = dataclasses.replace(GPU_SETTINGS, cache_tokens=10**12, cache_flag=flag)
    small = plan(tmp_path, {"head_dim": 32}, settings)
    with pytest.raises(ConfigError, match=f"^{flag} asks for a cache of 10+ tokens: must") as error:
        num_blocks_of(small, settings)
    assert f"at most {small.num_tokens}\n{small.render()}" in str(error.value)


def test_the_bound_on_sequences_is_the_kernels() -> None:
    """It is written down where no Triton is needed to read it."""
    assert MAX_GPU_SEQUENCES == MAX_SEQUENCES
