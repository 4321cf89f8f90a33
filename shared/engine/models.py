"""A model ready to run on a device: what both kinds of worker load, from a Hugging Face directory.

Code for GPUs is imported only where one is asked for: a worker on a CPU needs no Triton. So is
transformers, which takes a second, for architectures that our own decoder does not know.
"""

import os
import time
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

import structlog
import torch

from shared.common.errors import ConfigError
from shared.config.model import CPU, CacheDtype, Dtype
from shared.engine.config import ARCHITECTURES
from shared.engine.fields import Fields
from shared.engine.following import Follower
from shared.engine.ranking import HostRanker, Ranker
from shared.engine.runner import ModelRunner
from shared.engine.samplers import HostSampler, Sampler
from shared.engine.settings import AbsentGpu, ModelSettings
from shared.engine.shape import ModelShape
from shared.engine.spans import Runner

if TYPE_CHECKING:
    from shared.engine.gpu.runner import GpuRunner
    from shared.engine.gpu.sampling import GpuSampler

MIN_CAPABILITY = (8, 0)  # of compute: from there on GPUs multiply bfloat16
_PROGRESS_EVERY_S = 2.0

_log = structlog.get_logger()


class Computation(StrEnum):
    """By whose code a model is computed."""

    OWN = "own"
    TRANSFORMERS = "transformers"


@dataclass(frozen=True, slots=True)
class Model:
    """A loaded model with its cache."""

    config: ModelShape
    runner: Runner
    sampler: Sampler
    num_blocks: int
    ranker: Ranker  # of both: what drafters use
    follower: Follower | None = None  # where rounds can begin before the one before is known


def load_model(directory: Path, settings: ModelSettings) -> Model:
    """Load a Hugging Face directory onto a device.

    Raises:
        ConfigError: the model is not supported or does not fit, or the device cannot do it.
    """
    torch.set_num_threads(settings.threads)
    path = _computation(directory)
    if settings.device == CPU:
        model = _load_on_cpu(directory, settings, path)
    else:
        model = _load_on_gpu(directory, settings, path)
    _log.info("model_loaded", path=path.value, num_blocks=model.num_blocks)
    return model


def render_plan(directory: Path, settings: ModelSettings, absent: AbsentGpu | None = None) -> str:
    """What a model needs of a GPU's memory and how fast a step can be, without loading it.

    Args:
        directory: of the model.
        settings: on a GPU.
        absent: the GPU, if it is not in this machine.

    Raises:
        ConfigError: there is no such GPU here, or the model is not one of our own decoders'.
    """
    if absent is None:
        _find_gpu(settings.device)
    if _computation(directory) is Computation.TRANSFORMERS:
        raise ConfigError(
            f"--plan is set: must be off for {directory}, which transformers computes: such a "
            f"model is measured when it is loaded; allowed: {', '.join(sorted(ARCHITECTURES))}"
        )
    from shared.engine.gpu.loading import absent_plan, measured_plan  # noqa: PLC0415 - needs Triton

    if absent is None:
        return measured_plan(directory, settings)
    return absent_plan(directory, settings, absent)


def _load_on_cpu(directory: Path, settings: ModelSettings, path: Computation) -> Model:
    if settings.dtype not in (Dtype.AUTO, Dtype.FLOAT32):
        raise ConfigError(f"--dtype is {settings.dtype}: must be auto or float32 on a CPU")
    if settings.cache_dtype is not CacheDtype.AUTO:
        raise ConfigError(f"--kv-cache-dtype is {settings.cache_dtype}: must be auto on a CPU")
    if settings.is_batch_invariant:
        raise ConfigError(
            "--batch-invariant is set: must be off on a CPU, which computes in float32"
        )
    block_size = settings.block_size
    num_blocks = settings.cache_tokens // block_size
    if path is Computation.OWN:
        runner = ModelRunner.load(directory, num_blocks=num_blocks, block_size=block_size)
        return _on_cpu(runner.config, runner, num_blocks)
    from shared.engine.foreign.loading import load_foreign  # noqa: PLC0415 - needs transformers

    config, runner = load_foreign(directory, num_blocks=num_blocks, block_size=block_size)
    return _on_cpu(config, runner, num_blocks)


def _on_cpu(config: ModelShape, runner: Runner, num_blocks: int) -> Model:
    sampler = HostSampler()
    return Model(config, runner, sampler, num_blocks, HostRanker(runner, sampler))


def _load_on_gpu(directory: Path, settings: ModelSettings, path: Computation) -> Model:
    _find_gpu(settings.device)
    from shared.engine.gpu.exhaustion import explained  # noqa: PLC0415 - not without a GPU
    from shared.engine.gpu.following import ready_follower  # noqa: PLC0415 - needs Triton
    from shared.engine.gpu.ranking import GpuRanker  # noqa: PLC0415 - needs Triton

    with explained(settings.memory_flag):
        config, runner, sampler, num_blocks = _placed_on_gpu(directory, settings, path)
        ranker = GpuRanker(runner, sampler)
        if settings.is_drafter:
            ranker.warm_up(settings.num_ranks)
        follower = None if settings.is_drafter else ready_follower(runner, sampler)
    return Model(config, runner, sampler, num_blocks, ranker, follower)


def _placed_on_gpu(
    directory: Path, settings: ModelSettings, path: Computation
) -> tuple[ModelShape, "GpuRunner", "GpuSampler", int]:
    """What the model is, the model, its sampler, and the blocks of its cache."""
    if path is Computation.OWN:
        from shared.engine.gpu.loading import load_on_gpu  # noqa: PLC0415 - needs Triton

        runner, sampler, num_blocks = load_on_gpu(directory, settings, _Progress())
        return runner.config, runner, sampler, num_blocks
    from shared.engine.foreign.gpu_loading import (  # noqa: PLC0415 - Triton, transformers
        load_foreign_on_gpu,
    )

    return load_foreign_on_gpu(directory, settings, _Progress())


def _computation(directory: Path) -> Computation:
    """Our own decoder computes what it knows by name."""
    model_type = Fields.read(directory / "config.json").values.get("model_type")
    is_own = isinstance(model_type, str) and model_type in ARCHITECTURES
    return Computation.OWN if is_own else Computation.TRANSFORMERS


def _find_gpu(device: str) -> None:
    """Let this process see one GPU alone, before CUDA starts: no thread can pick another then.

    Raises:
        ConfigError: it is not there, or too old.
    """
    _, _, index = device.partition(":")
    if index:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        names = visible.split(",") if visible is not None else None
        is_known = names is None or int(index) < len(names)
        chosen = index if names is None else names[int(index)] if is_known else ""
        os.environ["CUDA_VISIBLE_DEVICES"] = chosen
    if not torch.cuda.is_available():
        raise ConfigError(f"--device is {device}: must be cpu here, torch sees no such GPU")
    capability = torch.cuda.get_device_capability()
    if capability < MIN_CAPABILITY:
        least, own = (".".join(map(str, one)) for one in (MIN_CAPABILITY, capability))
        raise ConfigError(
            f"--device is {device}: must be a GPU of compute capability {least} or more, "
            f"this one has {own}"
        )


class _Progress:
    """Logs how far loading is, not more often than a person reads."""

    def __init__(self) -> None:
        self._said_s = time.monotonic()

    def __call__(self, event: str, done: int, total: int) -> None:
        now_s = time.monotonic()
        if done == total or now_s - self._said_s >= _PROGRESS_EVERY_S:
            self._said_s = now_s
            _log.info(event, done=done, total=total, percent=100 * done // max(total, 1))
