"""Tiny models on the kernels of a GPU, in float32, wherever those run."""

import copy
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedConfig

from shared.engine.gpu.limits import GpuLimits
from shared.engine.gpu.runner import GpuRunner
from tests.checkpoints import CONFIGS, MAX_LEN
from tests.shared.engine.passes import BLOCK_SIZE, no_progress

LIMITS = GpuLimits(
    num_blocks=3 * MAX_LEN // BLOCK_SIZE,
    block_size=BLOCK_SIZE,
    max_rows=192,
    max_sequences=4,
    max_model_len=MAX_LEN,
    max_graph_rows=16,
)
# Rows of a tile that are none hold whatever memory holds; numpy warns of it in the interpreter.
ROWS_OF_NOBODY = pytest.mark.filterwarnings(
    "ignore::RuntimeWarning:triton.runtime.interpreter",
    "ignore:overflow encountered in reduce:RuntimeWarning",  # the same, from inside numpy
)


def on_gpus(name: str) -> PreTrainedConfig:
    """One of CONFIGS with heads of a size that the kernels take."""
    config = copy.deepcopy(CONFIGS[name])
    config.head_dim = 32
    return config


def load(
    directory: Path,
    device: str,
    limits: GpuLimits = LIMITS,
    *,
    cache_dtype: torch.dtype | None = None,
) -> GpuRunner:
    """Our own decoder; `cache_dtype` None for the model's."""
    return GpuRunner.load(
        directory,
        limits,
        device=torch.device(device),
        dtype=torch.float32,
        cache_dtype=cache_dtype,
        progress=no_progress,
    )
