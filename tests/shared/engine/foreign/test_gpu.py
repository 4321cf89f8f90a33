"""transformers' modules with the kernels of a GPU, against transformers alone."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from shared.common.errors import ConfigError
from shared.engine.foreign.gpu import foreign_gpu_runner
from shared.engine.foreign.loading import foreign_config, read_model
from shared.engine.gpu.limits import GpuLimits
from shared.engine.gpu.requirements import HEAD_DIMS
from shared.engine.gpu.runner import GpuRunner
from tests.checkpoints import MAX_LEN, save_checkpoint
from tests.shared.engine.foreign.architectures import foreign
from tests.shared.engine.passes import (
    BLOCK_SIZE,
    check_fork,
    check_mixed,
    no_progress,
)

ATOL = 2e-4
LIMITS = GpuLimits(
    num_blocks=3 * MAX_LEN // BLOCK_SIZE,
    block_size=BLOCK_SIZE,
    max_rows=192,
    max_sequences=4,
    max_model_len=MAX_LEN,
    max_graph_rows=8,
)
# Groups, a cap and windows; heads of 8 in rows of 32; keys wider than values, and experts.
KINDS = ["gemma2", "gpt2", "deepseek_v3"]


def load(directory: Path, device: str, limits: GpuLimits = LIMITS) -> GpuRunner:
    model: Any = read_model(directory, torch.float32).to(device)
    config = foreign_config(model, directory, HEAD_DIMS)
    return foreign_gpu_runner(config, model, limits, no_progress)


def saved(directory: Path, model_type: str) -> nn.Module:
    """Two layers, one of each kind: the interpreter is slow."""
    options: dict[str, object] = {"num_hidden_layers": 2}
    return save_checkpoint(directory, foreign(model_type, **options))


@pytest.mark.parametrize("model_type", KINDS)
def test_pieces_and_mixed_rounds_give_each_sequence_its_own_logits(
    model_type: str, tmp_path: Path, device: str
) -> None:
    """Prefill in two chunks, then decodes and verify rows beside another sequence's prefill."""
    model = saved(tmp_path, model_type)
    check_mixed((load(tmp_path, device), model, ATOL))


def test_a_copied_block_goes_its_own_way(tmp_path: Path, device: str) -> None:
    """A fork: the same beginning in another block, then other tokens."""
    model = saved(tmp_path, "gemma2")
    check_fork((load(tmp_path, device), model, ATOL))


def test_rounds_may_be_smaller_than_the_proof(tmp_path: Path, device: str) -> None:
    """Twelve rows, one sequence, a cache of three contexts: it is run in as many passes as need be.

    The proof's tables are of one context each, however large the cache.
    """
    saved(tmp_path, "gpt2")
    limits = dataclasses.replace(LIMITS, max_rows=12, max_sequences=1, max_graph_rows=2)
    load(tmp_path, device, limits)


def test_too_many_heads_a_group_are_refused(tmp_path: Path, device: str) -> None:
    """They must fit the smallest tile of a kernel."""
    sizes = {"num_attention_heads": 24, "num_key_value_heads": 1}
    save_checkpoint(tmp_path, foreign("olmo2", **sizes))
    with pytest.raises(ConfigError, match="24 query heads a key head"):
        load(tmp_path, device)
