"""Copies whole blocks of a paged cache: how a forked sequence gets its own last block.

cache[destination] = cache[source] for every pair, in the keys and values of all layers at once: a
drafter forks at nearly every step, and a launch a layer would cost it more than its pass. Pairs and
their number are read on the device, so that a captured graph copies whatever they say when it is
replayed, and hardly takes time where there are none.
"""

import functools
import math

import torch
import triton
import triton.language as tl
from torch import Tensor

# Four 16-byte loads of bf16 a thread: a block of 16 tokens x 8 heads x 128 fills 8 programs.
TILE_SIZE = 2048
NUM_WARPS = 4
PROGRAMS_PER_SM, INTERPRETED_PROGRAMS = 4, 8


def copy_words(num_copies: int) -> int:
    """Words of a list of so many copies: their number, then source and destination of each."""
    return 1 + 2 * num_copies


def copy_blocks_reference(caches: Tensor, copies: Tensor) -> None:
    """Do what `copy_blocks` does."""
    num_copies, *pairs = copies.tolist()
    sources, destinations = pairs[: 2 * num_copies : 2], pairs[1 : 2 * num_copies : 2]
    caches[:, destinations] = caches[:, sources]


@triton.jit(do_not_specialize=["num_blocks"])  # type: ignore[untyped-decorator]
def _copy_blocks_kernel(  # noqa: PLR0917  # Triton passes arguments by position
    caches_ptr: tl.tensor,  # [num_caches, num_blocks, block_numel]
    copies_ptr: tl.tensor,  # [1 + 2 N] int32
    num_blocks: tl.tensor,
    num_caches: tl.constexpr,
    block_numel: tl.constexpr,
    tile_size: tl.constexpr,
) -> None:
    num_tiles: tl.constexpr = (block_numel + tile_size - 1) // tile_size  # of a block
    num_work = tl.load(copies_ptr) * (num_caches * num_tiles)
    for work in range(tl.program_id(0), num_work, tl.num_programs(0)):
        block, tile = work // num_tiles, work % num_tiles
        pair_ptr = copies_ptr + 1 + 2 * (block // num_caches)
        first = num_blocks.to(tl.int64) * (block % num_caches)
        source, destination = first + tl.load(pair_ptr), first + tl.load(pair_ptr + 1)
        columns = tile * tile_size + tl.arange(0, tile_size)
        is_inside = columns < block_numel
        places = caches_ptr + columns
        numbers = tl.load(places + source * block_numel, mask=is_inside, other=0.0)
        tl.store(places + destination * block_numel, numbers, mask=is_inside)


def copy_blocks(caches: Tensor, copies: Tensor) -> None:
    """Copy blocks of several caches, in no particular order.

    Args:
        caches: [num_caches, num_blocks, num_kv_heads, block_size, D], contiguous; changed in place.
        copies: [`copy_words(N)`] int32 on the device: the number of copies, at most N, then source
            and destination of each; what is behind them does not count. Sources may repeat; a
            destination must occur once, and must not be the source of another copy: nothing orders
            them.
    """
    assert copies.dtype == torch.int32
    for tensor in (caches, copies):
        assert tensor.is_contiguous()
    num_caches, num_blocks, *shape = caches.shape
    _copy_blocks_kernel[(_num_programs(caches.device),)](
        caches,
        copies,
        num_blocks,
        num_caches=num_caches,
        block_numel=math.prod(shape),
        tile_size=TILE_SIZE,
        num_warps=NUM_WARPS,
        num_stages=1,
    )


@functools.cache
def _num_programs(device: torch.device) -> int:
    if device.type == "cpu":
        return INTERPRETED_PROGRAMS
    return torch.cuda.get_device_properties(device).multi_processor_count * PROGRAMS_PER_SM
