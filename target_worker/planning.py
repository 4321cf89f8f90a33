"""The memory plan that `--plan` prints: for a GPU that is here, or for one that is not."""

import msgspec
import torch

from shared.common.errors import ConfigError
from shared.config.model import CPU
from shared.engine.hub import Part, model_directory
from shared.engine.models import render_plan
from shared.engine.settings import AbsentGpu
from target_worker.config import Config
from target_worker.equipment import model_settings

GPU = "cuda"
GIB, GB = 2**30, 10**9


def planned(config: Config) -> str:
    """The plan as text; memory is planned for a GPU, whatever device the worker would take.

    Raises:
        ConfigError: there is no GPU here and none is described, or the model is not supported.
        Unavailable: the model cannot be fetched now.
    """
    if config.device == CPU:
        config = msgspec.structs.replace(config, device=GPU)
        if not config.plan_memory_gib and not torch.cuda.is_available():
            raise ConfigError(
                "--plan-memory-gib is 0: must be the memory of the GPU to plan for, "
                "torch sees none here"
            )
    directory = model_directory(config.model, Part.DESCRIPTION)
    return render_plan(directory, model_settings(config), _absent_gpu(config))


def _absent_gpu(config: Config) -> AbsentGpu | None:
    if not config.plan_memory_gib:
        return None
    bandwidth = config.plan_bandwidth * GB if config.plan_bandwidth else None
    return AbsentGpu(int(config.plan_memory_gib * GIB), bandwidth)
