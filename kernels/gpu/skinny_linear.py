"""Linear layers for few rows: y = x W^T + b + residual, with W read once.

A multiplication of one row takes as long as reading W. Each program streams its rows of W from the
first column to the last; where W is small, cuBLAS cuts it differently and reads slower. One order
of summation whatever the number of rows, so a row's result does not depend on the others.

Measured on an H200 (`bench.gpu_linear`, one row, microseconds, W not in the cache, floor by copy
bandwidth): 4,096 -> 4,096: floor 7.9, cuBLAS 13.6, this 12.0; 14,336 -> 4,096: 27.6, 32.3, 30.5.
More outputs are cuBLAS's (4,096 -> 28,672: 55, 58, 60). Within a step of 5 or 8 rows it takes 3 %
off (8B: 4.82 to 4.68 ms, 5.14 to 5.00; 1B, 16 rows: 1.24 to 1.20).
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  # torch's own name for it

MAX_ROWS = 16  # rows of the smallest matrix product


class Tiles(NamedTuple):
    """How the kernel is launched."""

    block_n: int  # rows of W a program
    block_k: int  # columns at a time
    num_warps: int
    num_stages: int


MAX_FAST_OUTPUTS = 4_096  # of more, cuBLAS is faster
TILES = Tiles(16, 512, 2, 4)  # pinned: another tile could round differently


def skinny_linear_reference(
    x: Tensor, weight: Tensor, *, bias: Tensor | None = None, residual: Tensor | None = None
) -> Tensor:
    """By definition, in float32; arguments as `skinny_linear`."""
    y = F.linear(x.float(), weight.float(), None if bias is None else bias.float())
    return (y if residual is None else y + residual.float()).to(x.dtype)


@triton.jit  # type: ignore[untyped-decorator]
def _skinny_linear_kernel(  # noqa: PLR0917  # kernels take their arguments by position
    x_ptr: tl.tensor,  # [T, K]
    weight_ptr: tl.tensor,  # [N, K]
    bias_ptr: tl.tensor,  # [N], or None
    residual_ptr: tl.tensor,  # [T, N], or None
    out_ptr: tl.tensor,  # [T, N]
    num_rows: tl.tensor,
    num_out: tl.constexpr,
    num_in: tl.constexpr,
    block_m: tl.constexpr,
    block_n: tl.constexpr,
    block_k: tl.constexpr,
    is_interpreted: tl.constexpr,
) -> None:
    rows = tl.arange(0, block_m)
    outputs = tl.program_id(0) * block_n + tl.arange(0, block_n)
    is_row, is_output = rows < num_rows, outputs < num_out
    x_row = x_ptr + rows[:, None] * num_in
    weight_row = weight_ptr + outputs[:, None].to(tl.int64) * num_in
    sums = tl.zeros([block_m, block_n], tl.float32)
    for start in range(0, num_in, block_k):
        inner = start + tl.arange(0, block_k)
        is_inner = (inner < num_in)[None, :]
        x = tl.load(x_row + inner[None, :], mask=is_row[:, None] & is_inner, other=0.0)
        weight = tl.load(weight_row + inner[None, :], mask=is_output[:, None] & is_inner, other=0.0)
        if is_interpreted:  # the interpreter multiplies bfloat16 wrongly
            x, weight = x.to(tl.float32), weight.to(tl.float32)
        sums = tl.dot(x, tl.trans(weight), sums, input_precision="ieee")
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + outputs, mask=is_output, other=0.0)
        sums += bias.to(tl.float32)[None, :]
    places = rows[:, None] * num_out + outputs[None, :]
    mask = is_row[:, None] & is_output[None, :]
    if residual_ptr is not None:
        sums += tl.load(residual_ptr + places, mask=mask, other=0.0).to(tl.float32)
    tl.store(out_ptr + places, sums.to(out_ptr.dtype.element_ty), mask=mask)


def skinny_linear(
    x: Tensor,
    weight: Tensor,
    *,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    out: Tensor | None = None,
    tiles: Tiles = TILES,
) -> Tensor:
    """Multiply up to MAX_ROWS rows.

    Args:
        x: [T, K] bf16, float16 or float32, contiguous.
        weight: [N, K] of the same dtype, contiguous.
        bias: [N].
        residual: [T, N], added before the result is rounded; may be `out`.
        out: [T, N]; allocated if not given.
        tiles: to find better ones.

    Returns:
        `out`.
    """
    (num_rows, num_in), num_out = x.shape, len(weight)
    assert num_rows <= MAX_ROWS
    assert weight.shape[1] == num_in
    out = x.new_empty(num_rows, num_out) if out is None else out
    assert out.shape == (num_rows, num_out)
    for tensor in (x, weight, out, *(one for one in (bias, residual) if one is not None)):
        assert tensor.is_contiguous()
        assert tensor.dtype == x.dtype
    _skinny_linear_kernel[(triton.cdiv(num_out, tiles.block_n),)](
        x,
        weight,
        bias,
        residual,
        out,
        num_rows,
        num_out=num_out,
        num_in=num_in,
        block_m=MAX_ROWS,
        block_n=tiles.block_n,
        block_k=tiles.block_k,
        is_interpreted=not x.is_cuda,
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
    )
    return out


def is_faster(weight: Tensor, num_rows: int) -> bool:
    """Whether this is faster than cuBLAS for so many rows, as far as was measured."""
    is_small = num_rows <= MAX_ROWS and len(weight) <= MAX_FAST_OUTPUTS
    return is_small and weight.dtype != torch.float32
