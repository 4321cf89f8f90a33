"""Queries, keys and values of few rows, turned and where they belong, in one launch.

[q, k, v] = s (x W^T) + b as in `skinny_linear`, rounded; then what `rotary_kv_write` does to them:
queries turned, turned keys and plain values into the paged cache. A program has some outputs of one
head, in which a pair that is turned are neighbours.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu.rotary_kv_write import cached_numbers, rotary_kv_write_reference
from kernels.gpu.skinny_linear import (
    MAX_ROWS,
    NARROW,
    Tiles,
    launch_options,
    products,
    row_scales,
    skinny_linear_reference,
    tiles_of,
)
from kernels.head_layout import HeadLayout


def skinny_qkv_reference(  # noqa: PLR0917  # as the launcher
    x: Tensor,
    weight: Tensor,
    cos_sin: Tensor,
    positions: Tensor,
    slots: Tensor,
    keys: Tensor,
    values: Tensor,
    layout: HeadLayout,
    *,
    bias: Tensor | None = None,
    squares: Tensor,
    eps: float,
) -> Tensor:
    """By definition; arguments as `skinny_qkv`."""
    qkv = skinny_linear_reference(x, weight, bias=bias, squares=squares, eps=eps)
    rotary_kv_write_reference(
        qkv, cos_sin, positions, slots, keys, values, layout, qk_norm=None, eps=eps
    )
    return qkv


@triton.jit  # type: ignore[untyped-decorator]
def _skinny_qkv_kernel(  # noqa: PLR0917  # kernels take their arguments by position
    x_ptr: tl.tensor,  # [T, K]
    weight_ptr: tl.tensor,  # [N, K]
    bias_ptr: tl.tensor,  # [N], or None
    squares_ptr: tl.tensor,  # [T, num_parts] float32, of x
    cos_sin_ptr: tl.tensor,  # [max_positions, 2, head_dim / 2] float32
    positions_ptr: tl.tensor, slots_ptr: tl.tensor,  # [T] int32
    keys_ptr: tl.tensor, values_ptr: tl.tensor,  # [num_blocks, num_kv_heads, block_size, head_dim]
    qkv_ptr: tl.tensor,  # [T, N]; queries alone are written
    num_rows: tl.tensor,
    eps: tl.tensor,
    num_heads: tl.constexpr, num_kv_heads: tl.constexpr, head_dim: tl.constexpr,
    num_in: tl.constexpr, num_parts: tl.constexpr, block_size: tl.constexpr,
    block_n: tl.constexpr, block_t: tl.constexpr, block_k: tl.constexpr,
    is_interpreted: tl.constexpr, is_dependent: tl.constexpr,
) -> None:  # fmt: skip
    num_out: tl.constexpr = (num_heads + 2 * num_kv_heads) * head_dim
    first = tl.program_id(0) * block_n
    outputs = first + tl.arange(0, block_n)
    sums = products(
        x_ptr, weight_ptr, outputs, num_rows, num_out, num_in, block_t, block_k, is_interpreted,
        is_dependent,
    )  # fmt: skip
    sums *= row_scales(squares_ptr, num_rows, eps, num_parts, num_in, block_t)[None, :]
    if bias_ptr is not None:
        sums += tl.load(bias_ptr + outputs).to(tl.float32)[:, None]
    plain = tl.trans(sums).to(qkv_ptr.dtype.element_ty)  # [block_t, block_n]

    row = tl.arange(0, block_t)
    is_row = row < num_rows
    slot = tl.load(slots_ptr + row, mask=is_row, other=-1).to(tl.int64)
    # The position of a padding row may be anything: it must not be followed.
    position = tl.where(slot < 0, 0, tl.load(positions_ptr + row, mask=is_row, other=0))
    head, column = first // head_dim, first % head_dim
    pair = column // 2 + tl.arange(0, block_n // 2)
    angles = cos_sin_ptr + position.to(tl.int64)[:, None] * head_dim + pair[None, :]
    cos, sin = tl.load(angles), tl.load(angles + head_dim // 2)
    a, b = tl.split(tl.reshape(plain.to(tl.float32), (block_t, block_n // 2, 2)))
    turned = tl.reshape(tl.join(a * cos - b * sin, a * sin + b * cos), (block_t, block_n))

    columns = (column + tl.arange(0, block_n))[None, :]
    is_cached = (is_row & (slot >= 0))[:, None]
    if head < num_heads:
        queries = row.to(tl.int64)[:, None] * num_out + outputs[None, :]
        tl.store(qkv_ptr + queries, turned.to(plain.dtype), mask=is_row[:, None])
    else:
        is_key = head < num_heads + num_kv_heads
        kv_head = tl.where(is_key, head - num_heads, head - num_heads - num_kv_heads)
        cells = (slot // block_size * num_kv_heads + kv_head) * block_size + slot % block_size
        places = cells[:, None] * head_dim + columns
        tl.store(keys_ptr + places, cached_numbers(turned, keys_ptr), mask=is_cached & is_key)
        tl.store(values_ptr + places, cached_numbers(plain, values_ptr), mask=is_cached & ~is_key)


def skinny_qkv(  # noqa: PLR0917  # three buffers of the round, two of the cache
    x: Tensor,
    weight: Tensor,
    cos_sin: Tensor,
    positions: Tensor,
    slots: Tensor,
    keys: Tensor,
    values: Tensor,
    layout: HeadLayout,
    *,
    bias: Tensor | None = None,
    squares: Tensor,
    eps: float,
) -> Tensor:
    """Multiply up to MAX_ROWS rows, turn queries and keys, and write keys and values.

    Args:
        x: [T, K] bf16, float16 or float32, contiguous.
        weight: [(queries + keys + values) x D, K] of that dtype, contiguous, times the norm's
            weight.
        cos_sin: as `rotary_kv_write` takes it; so are `positions`, `slots`, `keys` and `values`.
        positions: of the rows.
        slots: of the rows.
        keys: of the cache.
        values: of the cache.
        layout: of the result; D a multiple of 32.
        bias: [(queries + keys + values) x D].
        squares: [T, parts] float32, sums of squares of parts of `x`.
        eps: of the norm.

    Returns:
        [T, (queries + keys + values) x D], of which queries alone are written.
    """
    (num_rows, num_in), num_out = x.shape, layout.num_all * layout.head_dim
    tiles = _tiles_of(num_out, layout.head_dim)
    qkv = x.new_empty(num_rows, num_out)
    assert 0 < num_rows <= MAX_ROWS
    assert weight.shape == (num_out, num_in)
    assert keys.shape == values.shape
    assert (keys.shape[1], keys.shape[3]) == (layout.num_kv_heads, layout.head_dim)
    assert min(len(positions), len(slots)) >= num_rows
    assert (len(squares), squares.dtype) == (num_rows, torch.float32)
    for tensor in (x, weight, squares, cos_sin, positions, slots, keys, values):
        assert tensor.is_contiguous()
    _skinny_qkv_kernel[(num_out // tiles.block_n,)](
        x, weight, bias, squares, cos_sin, positions, slots, keys, values, qkv, num_rows, eps,
        num_heads=layout.num_heads,
        num_kv_heads=layout.num_kv_heads,
        head_dim=layout.head_dim,
        num_in=num_in,
        num_parts=squares.shape[1],
        block_size=keys.shape[2],
        **launch_options(tiles, x),
    )  # fmt: skip
    return qkv


def _tiles_of(num_out: int, head_dim: int) -> Tiles:
    """Those of a product of so many outputs, if none has outputs of two heads."""
    tiles = tiles_of(num_out)
    return NARROW if head_dim % tiles.block_n else tiles
