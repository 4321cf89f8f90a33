"""Copies of whole cache blocks on the GPU against their reference."""

import itertools

import pytest
import torch

from kernels.gpu.copy_blocks import NUM_WARPS, TILE_SIZE, copy_blocks, copy_blocks_reference
from tests.kernels.gpu.compiled import compile_for_sm90


def words(pairs: list[list[int]], device: str, *, num: int | None = None) -> torch.Tensor:
    """The list that says so; of its pairs, the first `num` count."""
    numbers = [len(pairs) if num is None else num, *itertools.chain(*pairs)]
    return torch.tensor(numbers, dtype=torch.int32, device=device)


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
    copies = words(pairs.tolist(), device)
    copy_blocks_reference(expected, copies)

    copy_blocks(caches, copies)

    assert torch.equal(caches.view(torch.uint8), expected.view(torch.uint8))
    assert not caches.isnan().any()


def test_one_block_may_go_to_many(device: str) -> None:
    """A sequence forks into several branches at once."""
    caches = torch.randn(2, 4, 2, 16, 8, device=device)
    copy_blocks(caches, words([[2, 0], [2, 3], [2, 1]], device))
    assert torch.equal(caches, caches[:, 2:3].expand_as(caches))


@pytest.mark.parametrize("num", [0, 1])
def test_what_is_behind_the_number_does_not_count(num: int, device: str) -> None:
    """A captured graph copies as many blocks as the list says when it is replayed."""
    caches = torch.randn(2, 4, 2, 16, 8, device=device)
    expected = caches.clone()
    expected[:, 2] = expected[:, 0 if num else 2].clone()

    copy_blocks(caches, words([[0, 2], [1, 3], [9_999, -5]], device, num=num))

    assert torch.equal(caches, expected)


@pytest.mark.gpu
def test_blocks_beyond_2_to_the_31_elements_are_reached() -> None:
    """Offsets are 64 bits wide, within a cache and from one to the next."""
    num_blocks = 2**31 // (8 * 16 * 128) + 2
    caches = torch.zeros(2, num_blocks, 8, 16, 128, dtype=torch.bfloat16, device="cuda")
    caches[0, num_blocks - 1] = 1.0
    caches[1, num_blocks - 1] = 2.0
    caches[:, num_blocks - 2] = 3.0
    copy_blocks(caches, words([[num_blocks - 1, 0], [1, num_blocks - 2]], "cuda"))

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
            "copies_ptr": "*i32",
            "num_blocks": "i32",
            "num_caches": "constexpr",
            "block_numel": "constexpr",
            "tile_size": "constexpr",
        },
        {"num_caches": 64, "block_numel": 8 * 16 * 128, "tile_size": TILE_SIZE},
        num_warps=NUM_WARPS,
        num_stages=1,
    )
    assert resources.spill_bytes == 0
