"""What settings come to on a GPU, before anything is loaded."""

import dataclasses

import pytest
import torch

from shared.common.errors import ConfigError
from shared.config.model import CacheDtype, Dtype
from shared.engine.gpu.loading import check_capability, memory_plan
from tests.settings import GPU_SETTINGS
from tests.shared.engine.gpu.test_memory import H200_BYTES, LLAMA_3_8B

SETTINGS = dataclasses.replace(
    GPU_SETTINGS,
    dtype=Dtype.AUTO,
    block_size=64,
    cache_tokens=0,
    max_rows=512,
    max_sequences=64,
    memory_share=0.9,
)
FP8 = dataclasses.replace(SETTINGS, cache_dtype=CacheDtype.FP8)


def test_a_token_costs_half_in_eight_bits() -> None:
    """64 KiB of an 8B model instead of 128; weights and activations stay as they were."""
    plan, small = (memory_plan(LLAMA_3_8B, settings, H200_BYTES) for settings in (SETTINGS, FP8))
    assert (plan.cache_dtype, small.cache_dtype) == (torch.bfloat16, torch.float8_e4m3fn)
    assert (plan.cache_bytes_per_token, small.cache_bytes_per_token) == (131_072, 65_536)
    assert small.dtype == torch.bfloat16
    assert small.weight_bytes == plan.weight_bytes
    assert small.num_tokens == pytest.approx(2 * plan.num_tokens, rel=0.02)


@pytest.mark.parametrize("capability", [(8, 0), (8, 6)])
def test_eight_bits_are_refused_where_the_gpu_cannot_convert_them(
    capability: tuple[int, int],
) -> None:
    """With what it has and what is needed; anything else goes there."""
    version = f"{capability[0]}.{capability[1]}"
    with pytest.raises(ConfigError, match=rf"--kv-cache-dtype is fp8: must be auto .* {version},"):
        check_capability(FP8, capability)
    check_capability(SETTINGS, capability)


@pytest.mark.parametrize("capability", [(8, 9), (9, 0), (10, 0)])
def test_eight_bits_are_taken_from_ada_on(capability: tuple[int, int]) -> None:
    """Ada, Hopper and later."""
    check_capability(FP8, capability)


@pytest.mark.parametrize("block_size", [8, 48, 512])
def test_blocks_that_attention_cannot_read_are_refused(block_size: int) -> None:
    """With those that it can."""
    settings = dataclasses.replace(SETTINGS, block_size=block_size)
    with pytest.raises(ConfigError, match=rf"--block-size is {block_size}: must be 16, 32, 64"):
        memory_plan(LLAMA_3_8B, settings, H200_BYTES)
