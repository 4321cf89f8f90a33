"""Copies whole blocks of one layer's paged cache: how a forked sequence gets its own last block.

keys[destination] = keys[source], and the same for values, for every pair. The pairs are read on the
device, so a captured graph copies whatever they say when it is replayed.
"""

import triton
import triton.language as tl
from torch import Tensor

# Four 16-byte loads of bf16 a thread: a block of 16 tokens x 8 heads x 128 fills 8 programs.
TILE_SIZE = 2048
NUM_WARPS = 4


def copy_blocks_reference(keys: Tensor, values: Tensor, pairs: Tensor) -> None:
    """Do what `copy_blocks` does."""
    sources, destinations = pairs[(pairs >= 0).all(dim=1)].unbind(dim=1)
    for cache in (keys, values):
        cache[destinations] = cache[sources]


@triton.jit  # type: ignore[untyped-decorator]
def _copy_blocks_kernel(
    keys_ptr: tl.tensor,  # [num_blocks, block_numel]
    values_ptr: tl.tensor,  # the same
    pairs_ptr: tl.tensor,  # [N, 2] int64
    block_numel: tl.constexpr,
    tile_size: tl.constexpr,
) -> None:
    pair = tl.program_id(0).to(tl.int64)
    source = tl.load(pairs_ptr + 2 * pair)
    destination = tl.load(pairs_ptr + 2 * pair + 1)
    if (source >= 0) & (destination >= 0):
        columns = tl.program_id(1) * tile_size + tl.arange(0, tile_size)
        is_inside = columns < block_numel
        start, end = source * block_numel, destination * block_numel
        keys = tl.load(keys_ptr + start + columns, mask=is_inside, other=0.0)
        values = tl.load(values_ptr + start + columns, mask=is_inside, other=0.0)
        tl.store(keys_ptr + end + columns, keys, mask=is_inside)
        tl.store(values_ptr + end + columns, values, mask=is_inside)


def copy_blocks(keys: Tensor, values: Tensor, pairs: Tensor) -> None:
    """Copy blocks of one layer, in no particular order.

    Args:
        keys: [num_blocks, num_kv_heads, block_size, D], contiguous; changed in place.
        values: the same shape and dtype.
        pairs: [N, 2] int64 (source, destination), on the device. A pair with a negative number is
            padding and copies nothing. Sources may repeat; a destination must occur once, and must
            not be the source of another pair: nothing orders the copies.
    """
    assert keys.shape == values.shape
    assert keys.dtype == values.dtype
    assert pairs.shape[1:] == (2,)
    for tensor in (keys, values, pairs):
        assert tensor.is_contiguous()
    block_numel = keys[0].numel()
    grid = (len(pairs), triton.cdiv(block_numel, TILE_SIZE))
    _copy_blocks_kernel[grid](
        keys,
        values,
        pairs,
        block_numel=block_numel,
        tile_size=TILE_SIZE,
        num_warps=NUM_WARPS,
        num_stages=1,
    )
