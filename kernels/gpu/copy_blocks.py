"""Copies whole blocks of a paged cache: how a forked sequence gets its own last block.

cache[destination] = cache[source] for every pair, in the keys and values of all layers at once: a
drafter forks at nearly every step, and a launch a layer would cost it more than its pass. The pairs
are read on the device, so a captured graph copies whatever they say when it is replayed.
"""

import triton
import triton.language as tl
from torch import Tensor

# Four 16-byte loads of bf16 a thread: a block of 16 tokens x 8 heads x 128 fills 8 programs.
TILE_SIZE = 2048
NUM_WARPS = 4


def copy_blocks_reference(caches: Tensor, pairs: Tensor) -> None:
    """Do what `copy_blocks` does."""
    sources, destinations = pairs[(pairs >= 0).all(dim=1)].unbind(dim=1)
    caches[:, destinations] = caches[:, sources]


@triton.jit  # type: ignore[untyped-decorator]
def _copy_blocks_kernel(
    caches_ptr: tl.tensor,  # [num_caches, num_blocks, block_numel]
    pairs_ptr: tl.tensor,  # [N, 2] int64
    num_blocks: tl.tensor,
    block_numel: tl.constexpr,
    tile_size: tl.constexpr,
) -> None:
    pair = tl.program_id(0).to(tl.int64)
    source = tl.load(pairs_ptr + 2 * pair)
    destination = tl.load(pairs_ptr + 2 * pair + 1)
    if (source >= 0) & (destination >= 0):
        columns = tl.program_id(1) * tile_size + tl.arange(0, tile_size)
        is_inside = columns < block_numel
        first = tl.program_id(2).to(tl.int64) * num_blocks
        numbers = tl.load(
            caches_ptr + (first + source) * block_numel + columns, mask=is_inside, other=0.0
        )
        places = caches_ptr + (first + destination) * block_numel + columns
        tl.store(places, numbers, mask=is_inside)


def copy_blocks(caches: Tensor, pairs: Tensor) -> None:
    """Copy blocks of several caches, in no particular order.

    Args:
        caches: [num_caches, num_blocks, num_kv_heads, block_size, D], contiguous; changed in place.
        pairs: [N, 2] int64 (source, destination), on the device. A pair with a negative number is
            padding and copies nothing. Sources may repeat; a destination must occur once, and must
            not be the source of another pair: nothing orders the copies.
    """
    assert pairs.shape[1:] == (2,)
    for tensor in (caches, pairs):
        assert tensor.is_contiguous()
    num_caches, num_blocks = caches.shape[:2]
    block_numel = caches[0, 0].numel()
    grid = (len(pairs), triton.cdiv(block_numel, TILE_SIZE), num_caches)
    _copy_blocks_kernel[grid](
        caches,
        pairs,
        num_blocks,
        block_numel=block_numel,
        tile_size=TILE_SIZE,
        num_warps=NUM_WARPS,
        num_stages=1,
    )
