"""The memory plan that `--plan` prints: for the GPU that is here, or for one that is not."""

import msgspec
import torch

from shared.common.errors import ConfigError
from shared.config.model import CPU
from shared.engine.hub import Part, model_directory
from shared.engine.models import render_plan
from shared.engine.settings import AbsentGpu
from target_worker.config import HERE, Config
from target_worker.equipment import model_settings

GPU = "cuda"
GIB, GB = 2**30, 10**9


def planned(config: Config) -> str:
    """The plan as text; memory is planned for a GPU, whatever device the worker would take.

    Raises:
        ConfigError: there is no GPU here and none is described, or the model is not supported.
        Unavailable: the model cannot be fetched now.
    """
    absent = None if config.plan == HERE else _absent_gpu(config.plan)
    if config.device == CPU:
        config = msgspec.structs.replace(config, device=GPU)
        if absent is None and not torch.cuda.is_available():
            raise ConfigError(
                f"--plan is {HERE}: must be the GiB of the GPU to plan for, torch sees none here"
            )
    directory = model_directory(config.model, Part.DESCRIPTION)
    return render_plan(directory, model_settings(config), absent)


def _absent_gpu(text: str) -> AbsentGpu:
    """Of `GiB` or `GiB@GB/s`."""
    memory, _, bandwidth = text.partition("@")
    return AbsentGpu(int(float(memory) * GIB), float(bandwidth or 0.0) * GB or None)
