"""Copies of whole cache blocks on the GPU against their reference."""

import pytest
import torch
from torch import Tensor

from kernels.gpu.copy_blocks import NUM_WARPS, TILE_SIZE, copy_blocks, copy_blocks_reference
from tests.kernels.gpu.compiled import compile_for_sm90


def random_cache(*shape: int, dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor]:
    """Keys and values."""
    keys, values = torch.randn(2, *shape, device=device).to(dtype)
    return keys, values


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn]
)
@pytest.mark.parametrize("shape", [(1, 16, 1), (2, 16, 63), (2, 32, 128), (1, 16, 1009)])
@pytest.mark.parametrize("num_pairs", [1, 5])
def test_blocks_are_copied_and_all_others_stay(
    num_pairs: int, shape: tuple[int, int, int], dtype: torch.dtype, device: str
) -> None:
    """Bit by bit, whatever stood in the destination."""
    keys, values = random_cache(12, *shape, dtype=dtype, device=device)
    pairs = torch.randperm(12)[: 2 * num_pairs].view(num_pairs, 2)
    for cache in (keys, values):
        cache[pairs[:, 1].to(device)] = float("nan")
    expected_keys, expected_values = keys.clone(), values.clone()
    copy_blocks_reference(expected_keys, expected_values, pairs.to(device))

    copy_blocks(keys, values, pairs.to(device))

    assert torch.equal(keys.view(torch.uint8), expected_keys.view(torch.uint8))
    assert torch.equal(values.view(torch.uint8), expected_values.view(torch.uint8))
    assert not keys.isnan().any()
    assert not values.isnan().any()


def test_one_block_may_go_to_many(device: str) -> None:
    """A sequence forks into several branches at once."""
    keys, values = random_cache(4, 2, 16, 8, dtype=torch.float32, device=device)
    copy_blocks(keys, values, torch.tensor([[2, 0], [2, 3], [2, 1]], device=device))
    for cache in (keys, values):
        assert torch.equal(cache, cache[2].expand_as(cache))


def test_negative_pairs_are_padding(device: str) -> None:
    """A captured graph copies fewer blocks than it was captured for; none is right too."""
    keys, values = random_cache(4, 2, 16, 8, dtype=torch.float32, device=device)
    before_keys, before_values = keys.clone(), values.clone()

    copy_blocks(keys, values, torch.tensor([[-1, -1], [-1, 2], [1, -1]], device=device))
    copy_blocks(keys, values, torch.empty(0, 2, dtype=torch.int64, device=device))

    assert torch.equal(keys, before_keys)
    assert torch.equal(values, before_values)


@pytest.mark.gpu
def test_blocks_beyond_2_to_the_31_elements_are_reached() -> None:
    """Offsets are 64 bits wide."""
    num_blocks = 2**31 // (8 * 16 * 128) + 2
    keys, values = torch.zeros(
        2, num_blocks, 8, 16, 128, dtype=torch.bfloat16, device="cuda"
    ).unbind()
    keys[num_blocks - 1] = 1.0
    values[num_blocks - 1] = 2.0
    keys[num_blocks - 2] = 3.0
    pairs = torch.tensor([[num_blocks - 1, 0], [1, num_blocks - 2]], device="cuda")

    copy_blocks(keys, values, pairs)

    assert bool(keys[0].eq(1.0).all())
    assert bool(values[0].eq(2.0).all())
    assert bool(keys[num_blocks - 2].eq(0.0).all())


@pytest.mark.parametrize("cache", ["*bf16", "*fp8e4nv"])
def test_the_production_configuration_fits_a_gpu(cache: str) -> None:
    """Without a spill."""
    resources = compile_for_sm90(
        "kernels.gpu.copy_blocks",
        "_copy_blocks_kernel",
        {
            "keys_ptr": cache,
            "values_ptr": cache,
            "pairs_ptr": "*i64",
            "block_numel": "constexpr",
            "tile_size": "constexpr",
        },
        {"block_numel": 8 * 16 * 128, "tile_size": TILE_SIZE},
        num_warps=NUM_WARPS,
        num_stages=1,
    )
    assert resources.spill_bytes == 0
