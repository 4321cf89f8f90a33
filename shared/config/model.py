"""The settings of a program that runs a model: on what, in which numbers, with how much memory."""

from enum import StrEnum
from typing import Annotated

from msgspec import Meta

from shared.config.common import CommonConfig

CPU = "cpu"


class Dtype(StrEnum):
    """Of weights and activations. `auto`: float32 on a CPU, bfloat16 on a GPU."""

    AUTO = "auto"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"
    FLOAT32 = "float32"


class CacheDtype(StrEnum):
    """Of keys and values. `auto`: as the model computes. `fp8`: float8 e4m3, half of bfloat16."""

    AUTO = "auto"
    FP8 = "fp8"


class ModelOptions(CommonConfig, frozen=True, kw_only=True):
    """Flags and environment variables that target and draft workers share."""

    device: Annotated[
        str, Meta(pattern="^(cpu|cuda(:[0-9]+)?)$", description="cpu, cuda, or one GPU: cuda:1")
    ] = CPU
    threads: Annotated[int, Meta(ge=1, le=256, description="of one model pass on the CPU")] = 1
