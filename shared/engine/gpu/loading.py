"""From a Hugging Face directory and a worker's settings to a model that is ready on a GPU."""

from collections.abc import Callable
from pathlib import Path

import torch

from shared.common.errors import ConfigError
from shared.config.model import CacheDtype, Dtype
from shared.engine.config import ModelConfig
from shared.engine.gpu.memory import DecoderPlan, MemoryPlan
from shared.engine.gpu.requirements import check_model, check_settings
from shared.engine.gpu.runner import GpuRunner
from shared.engine.gpu.sampling import GpuSampler
from shared.engine.settings import AbsentGpu, ModelSettings

DTYPES = {
    Dtype.AUTO: torch.bfloat16,
    Dtype.BFLOAT16: torch.bfloat16,
    Dtype.FLOAT16: torch.float16,
    Dtype.FLOAT32: torch.float32,
}
FP8_CAPABILITY = (8, 9)  # of compute: from there on float8 e4m3 is converted by the GPU
PROBE_BYTES, PROBE_REPEATS = 1 << 30, 4  # far beyond any cache

Progress = Callable[[str, int, int], None]  # what is being done, how much of it, of how much


def memory_plan(config: ModelConfig, settings: ModelSettings, total_bytes: int) -> DecoderPlan:
    """What these settings need on a device with so much memory.

    Raises:
        ConfigError: the kernels cannot run it, or cannot run it so.
    """
    check_settings(settings)
    check_model(config, settings)
    return DecoderPlan(
        config=config,
        dtype=DTYPES[settings.dtype],
        cache_dtype=cache_dtype_of(settings),
        total_bytes=total_bytes,
        max_rows=settings.max_rows,
        max_sequences=settings.max_sequences,
        max_model_len=min(settings.max_model_len or config.max_model_len, config.max_model_len),
        block_size=settings.block_size,
        utilization=settings.memory_share,
        is_batch_invariant=settings.is_batch_invariant,
        is_drafter=settings.is_drafter,
    )


def cache_dtype_of(settings: ModelSettings) -> torch.dtype:
    """Of keys and values."""
    is_fp8 = settings.cache_dtype is CacheDtype.FP8
    return torch.float8_e4m3fn if is_fp8 else DTYPES[settings.dtype]


def check_capability(settings: ModelSettings, capability: tuple[int, int]) -> None:
    """Refuse what a GPU of this compute capability cannot do.

    Raises:
        ConfigError: a cache of 8 bits before Ada and Hopper.
    """
    if settings.cache_dtype is CacheDtype.FP8 and capability < FP8_CAPABILITY:
        raise ConfigError(
            f"--kv-cache-dtype is fp8: must be auto on a GPU of compute capability "
            f"{'.'.join(map(str, capability))}, fp8 needs {'.'.join(map(str, FP8_CAPABILITY))}"
        )


def measured_plan(directory: Path, settings: ModelSettings) -> str:
    """The plan for this GPU as text, with the floor that its measured copy bandwidth sets.

    Raises:
        ConfigError: as `memory_plan` and `check_capability`, or the directory is none.
    """
    device = torch.device("cuda")
    total_bytes = torch.cuda.get_device_properties(device).total_memory
    check_capability(settings, torch.cuda.get_device_capability(device))
    plan = memory_plan(ModelConfig.from_directory(directory), settings, total_bytes)
    return plan.render(bandwidth=_copy_bandwidth(device))


def absent_plan(directory: Path, settings: ModelSettings, gpu: AbsentGpu) -> str:
    """The plan for another GPU as text, with the floor that its bandwidth sets, if it is known.

    Raises:
        ConfigError: as `memory_plan`, or the directory is none.
    """
    plan = memory_plan(ModelConfig.from_directory(directory), settings, gpu.memory_bytes)
    return plan.render(bandwidth=gpu.bandwidth)


def load_on_gpu(
    directory: Path, settings: ModelSettings, progress: Progress
) -> tuple[GpuRunner, GpuSampler, int]:
    """Load, allocate and capture.

    Returns:
        The model, its sampler, and the blocks of its cache.

    Raises:
        ConfigError: the model or the GPU is not supported, or it does not fit; with the plan.
    """
    device = torch.device("cuda")
    check_capability(settings, torch.cuda.get_device_capability(device))
    config = ModelConfig.from_directory(directory)
    total_bytes = torch.cuda.get_device_properties(device).total_memory
    plan = memory_plan(config, settings, total_bytes)
    num_blocks = num_blocks_of(plan, settings)
    plan.check_free(num_blocks, torch.cuda.mem_get_info(device)[0], settings.memory_flag)
    runner = GpuRunner.load(
        directory,
        plan.limits(num_blocks),
        device=device,
        dtype=DTYPES[settings.dtype],
        cache_dtype=cache_dtype_of(settings),
        progress=progress,
    )
    return runner, ready_sampler(runner, plan, settings), num_blocks


def ready_sampler(runner: GpuRunner, plan: MemoryPlan, settings: ModelSettings) -> GpuSampler:
    """The sampler of a runner, with everything compiled, loaded and captured for both."""
    sampler = GpuSampler(
        max_rows=plan.max_sampled_rows,
        vocab_size=runner.config.vocab_size,
        device=runner.device,
        guesses=runner.guesses if settings.is_drafter else None,
    )
    num_ranks = (settings.num_ranks,) if settings.num_ranks else ()
    sampler.warm_up({runner.warm_up().dtype, plan.dtype}, num_ranks)
    if runner.graph_logits is not None:
        sampler.capture(runner.graph_logits, plan.limits(0).graph_rows, num_ranks)
    return sampler


def num_blocks_of(plan: MemoryPlan, settings: ModelSettings) -> int:
    """Blocks of the cache: as many as were asked for, or as fit.

    Raises:
        ConfigError: more were asked for than fit, or not one sequence does; with the plan.
    """
    asked = settings.cache_tokens // settings.block_size
    if asked > plan.num_blocks:
        raise ConfigError(
            f"{settings.cache_flag} asks for a cache of {settings.cache_tokens} tokens: "
            f"must be at most {plan.num_tokens}\n{plan.render()}"
        )
    if not asked:
        plan.check()
    return asked or plan.num_blocks


@torch.inference_mode()
def _copy_bandwidth(device: torch.device) -> float:
    """Bytes read and written a second by a copy within the device; takes some 20 ms."""
    source = torch.ones(PROBE_BYTES, dtype=torch.uint8, device=device)
    copies = [torch.empty_like(source) for _ in range(2)]
    start: torch.cuda.Event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    end: torch.cuda.Event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    copies[0].copy_(source)
    start.record()
    for _ in range(PROBE_REPEATS):
        for copy in copies:
            copy.copy_(source)
    end.record()
    end.synchronize()
    num_bytes = 2 * PROBE_BYTES * len(copies) * PROBE_REPEATS
    return num_bytes / (1e-3 * float(start.elapsed_time(end)))
