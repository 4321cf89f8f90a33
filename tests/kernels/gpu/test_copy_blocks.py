"""Copies of whole cache blocks on the GPU against their reference."""

import pytest
import torch

from kernels.gpu.copy_blocks import NUM_WARPS, TILE_SIZE, copy_blocks, copy_blocks_reference
from tests.kernels.gpu.compiled import compile_for_sm90


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn]
)
@pytest.mark.parametrize("shape", [(1, 16, 1), (2, 16, 63), (2, 32, 128), (1, 16, 1009)])
@pytest.mark.parametrize("num_pairs", [1, 5])
def test_blocks_are_copied_and_all_others_stay(
    num_pairs: int, shape: tuple[int, int, int], dtype: torch.dtype, device: str
) -> None:
    """Bit by bit, in every cache, whatever stood in the destination."""
    caches = torch.randn(3, 12, *shape, device=device).to(dtype)
    pairs = torch.randperm(12)[: 2 * num_pairs].view(num_pairs, 2)
    caches[:, pairs[:, 1].to(device)] = float("nan")
    expected = caches.clone()
    copy_blocks_reference(expected, pairs.to(device))

    copy_blocks(caches, pairs.to(device))

    assert torch.equal(caches.view(torch.uint8), expected.view(torch.uint8))
    assert not caches.isnan().any()


def test_one_block_may_go_to_many(device: str) -> None:
    """A sequence forks into several branches at once."""
    caches = torch.randn(2, 4, 2, 16, 8, device=device)
    copy_blocks(caches, torch.tensor([[2, 0], [2, 3], [2, 1]], device=device))
    assert torch.equal(caches, caches[:, 2:3].expand_as(caches))


def test_negative_pairs_are_padding(device: str) -> None:
    """A captured graph copies fewer blocks than it was captured for; none is right too."""
    caches = torch.randn(2, 4, 2, 16, 8, device=device)
    before = caches.clone()

    copy_blocks(caches, torch.tensor([[-1, -1], [-1, 2], [1, -1]], device=device))
    copy_blocks(caches, torch.empty(0, 2, dtype=torch.int64, device=device))

    assert torch.equal(caches, before)


@pytest.mark.gpu
def test_blocks_beyond_2_to_the_31_elements_are_reached() -> None:
    """Offsets are 64 bits wide, within a cache and from one to the next."""
    num_blocks = 2**31 // (8 * 16 * 128) + 2
    caches = torch.zeros(2, num_blocks, 8, 16, 128, dtype=torch.bfloat16, device="cuda")
    caches[0, num_blocks - 1] = 1.0
    caches[1, num_blocks - 1] = 2.0
    caches[:, num_blocks - 2] = 3.0
    pairs = torch.tensor([[num_blocks - 1, 0], [1, num_blocks - 2]], device="cuda")

    copy_blocks(caches, pairs)

    assert bool(caches[0, 0].eq(1.0).all())
    assert bool(caches[1, 0].eq(2.0).all())
    assert bool(caches[:, num_blocks - 2].eq(0.0).all())


@pytest.mark.parametrize("cache", ["*bf16", "*fp8e4nv"])
def test_the_production_configuration_fits_a_gpu(cache: str) -> None:
    """Without a spill."""
    resources = compile_for_sm90(
        "kernels.gpu.copy_blocks",
        "_copy_blocks_kernel",
        {
            "caches_ptr": cache,
            "pairs_ptr": "*i64",
            "num_blocks": "i32",
            "block_numel": "constexpr",
            "tile_size": "constexpr",
        },
        {"block_numel": 8 * 16 * 128, "tile_size": TILE_SIZE},
        num_warps=NUM_WARPS,
        num_stages=1,
    )
    assert resources.spill_bytes == 0
