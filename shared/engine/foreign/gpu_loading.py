"""From a Hugging Face directory and a worker's settings to transformers' module on a GPU."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shared.common.errors import ConfigError
from shared.config.model import CacheDtype
from shared.engine.fields import Fields
from shared.engine.foreign.config import ForeignConfig
from shared.engine.foreign.decoder import fused_rows, unpacked_heads
from shared.engine.foreign.gpu import foreign_gpu_runner
from shared.engine.foreign.interface import AttentionCall, attending, logits_of
from shared.engine.foreign.loading import foreign_config, read_model
from shared.engine.gpu.loading import DTYPES, num_blocks_of, ready_sampler
from shared.engine.gpu.memory import GIB, MemoryPlan
from shared.engine.gpu.requirements import HEAD_DIMS, check_settings, check_stated_heads
from shared.engine.gpu.runner import GpuRunner, Progress
from shared.engine.gpu.sampling import GpuSampler
from shared.engine.settings import ModelSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredPlan(MemoryPlan):
    """A plan for a model that is already there: its weights and a pass of it are measured."""

    measured_weight_bytes: int
    measured_activation_bytes: int  # of the largest round

    @property
    def weight_bytes(self) -> int:
        """All parameters and buffers."""
        return self.measured_weight_bytes

    @property
    def read_bytes(self) -> int:
        """All of them: which ones a step reads, the model alone knows."""
        return self.measured_weight_bytes

    @property
    def activation_bytes(self) -> int:
        """Of the largest round."""
        return self.measured_activation_bytes

    @property
    def graph_bytes(self) -> int:
        """One pool, at most as large as the largest round, and logits of all rows of a graph."""
        num_logits = min(self.max_graph_rows, self.max_rows) * self.config.vocab_size
        return self.measured_activation_bytes + num_logits * self.dtype.itemsize


def load_foreign_on_gpu(
    directory: Path, settings: ModelSettings, progress: Progress
) -> tuple[ForeignConfig, GpuRunner, GpuSampler, int]:
    """Load, measure, allocate, capture and prove.

    Returns:
        What the model is, the model, its sampler, and the blocks of its cache.

    Raises:
        ConfigError: the model is not supported, or does not fit; with the memory plan.
    """
    if settings.is_batch_invariant:
        raise ConfigError(
            "--batch-invariant is set: must be off for a model that transformers computes"
        )
    if settings.cache_dtype is not CacheDtype.AUTO:
        raise ConfigError(
            f"--kv-cache-dtype is {settings.cache_dtype}: must be auto for a model that "
            "transformers computes, which is held to its own logits before it serves"
        )
    check_settings(settings)
    check_stated_heads(Fields.read(directory / "config.json"))
    model = _model_on_gpu(directory, settings, progress)
    config = foreign_config(model, directory, HEAD_DIMS)
    plan = _measured_plan(model, config, settings)
    num_blocks = num_blocks_of(plan, settings)
    runner = foreign_gpu_runner(config, model, plan.limits(num_blocks), progress)
    return config, runner, ready_sampler(runner, plan, settings), num_blocks


def _model_on_gpu(directory: Path, settings: ModelSettings, progress: Progress) -> Any:  # noqa: ANN401  # transformers' own
    """The module, by way of the host's memory: transformers reads shards there."""
    model = read_model(directory, DTYPES[settings.dtype])
    needed_bytes, usable_bytes = _weight_bytes(model), settings.memory_share * _total_bytes()
    if needed_bytes > usable_bytes:
        raise ConfigError(
            f"{directory}: {needed_bytes / GIB:.2f} GiB of weights do not fit the "
            f"{usable_bytes / GIB:.2f} GiB that may be used"
        )
    model.to("cuda")
    progress("weights_loaded", 1, 1)
    return model


def _measured_plan(
    model: Any,  # noqa: ANN401  # transformers' own
    config: ForeignConfig,
    settings: ModelSettings,
) -> MeasuredPlan:
    return MeasuredPlan(
        config=config,
        dtype=model.dtype,
        cache_dtype=model.dtype,
        total_bytes=_total_bytes(),
        max_rows=settings.max_rows,
        max_sequences=settings.max_sequences,
        max_model_len=min(settings.max_model_len or config.max_model_len, config.max_model_len),
        block_size=settings.block_size,
        utilization=settings.memory_share,
        is_drafter=settings.is_drafter,
        measured_weight_bytes=_weight_bytes(model),
        measured_activation_bytes=_activation_bytes(model, config, settings),
    )


def _weight_bytes(model: Any) -> int:  # noqa: ANN401  # transformers' own
    return sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))


def _total_bytes() -> int:
    return torch.cuda.get_device_properties(torch.device("cuda")).total_memory


@torch.inference_mode()
def _activation_bytes(
    model: Any,  # noqa: ANN401  # transformers' own
    config: ForeignConfig,
    settings: ModelSettings,
) -> int:
    """What a pass of the largest round allocates at most, without attention but with its rows."""
    layout = config.layout

    def attend(call: AttentionCall) -> Tensor:
        qkv = fused_rows(call, layout, model.dtype)
        out = qkv.new_zeros(len(qkv), layout.num_heads * layout.head_dim)
        return unpacked_heads(out, layout, config.layers[call.layer].value_dim)

    rows = torch.arange(settings.max_rows, device=model.device)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    with attending(attend):
        logits_of(
            model,
            rows % config.vocab_size,
            rows % config.max_model_len,
            rows[: settings.max_sequences],
        ).float()
    return torch.cuda.max_memory_allocated() - before
