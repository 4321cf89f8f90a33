"""Linear layers for few rows: y = s (x W^T) + b + residual, with W read once.

A multiplication of a few rows takes as long as reading W, and a kernel between two of them as long
as launching it. So what stands between them is done here: s is 1, or the scale 1 / sqrt(mean(x^2) +
eps) of each row's RMSNorm, whose weight is part of W; and who writes a residual stream also leaves
the sums of its squares, from which the next one has its scale.

Outputs lie along the long side of the instruction (y^T = W x^T). One order of summation whatever
the number of rows, so a row's result does not depend on the others.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  # torch's own name for it

from kernels.gpu.dependent_launch import dependent_launch, let_next_start, wait_for_launched

MAX_ROWS = 16  # rows of the smallest matrix product; up to 64 it was no faster than cuBLAS


class Tiles(NamedTuple):
    """How a kernel is launched."""

    block_n: int  # rows of W a program
    block_k: int  # columns at a time
    num_warps: int
    num_stages: int


# Pinned: another tile could round differently. Few outputs make few programs of few outputs each.
NARROW, WIDE = Tiles(16, 512, 2, 4), Tiles(64, 128, 4, 5)
MAX_NARROW_OUTPUTS = 4_096


def tiles_of(num_out: int) -> Tiles:
    """By the outputs of the matrix."""
    return NARROW if num_out <= MAX_NARROW_OUTPUTS else WIDE


def num_parts_of(num_out: int) -> int:
    """How many partial sums of squares a product with so many outputs leaves."""
    parts: int = triton.cdiv(num_out, tiles_of(num_out).block_n)
    return parts


def skinny_linear_reference(
    x: Tensor,
    weight: Tensor,
    *,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    squares: Tensor | None = None,
    eps: float = 0.0,
) -> Tensor:
    """By definition, in float32; arguments as `skinny_linear`."""
    y = F.linear(x.float(), weight.float())
    if squares is not None:
        y *= torch.rsqrt(squares.sum(dim=1, keepdim=True) / x.shape[1] + eps)
    y = y if bias is None else y + bias.float()
    return (y if residual is None else y + residual.float()).to(x.dtype)


@triton.jit  # type: ignore[untyped-decorator]
def products(  # noqa: PLR0917  # Triton passes arguments by position
    x_ptr: tl.tensor,  # [T, K]
    weight_ptr: tl.tensor,  # [N, K]
    outputs: tl.tensor,  # [block_n]
    num_rows: tl.tensor,
    num_out: tl.constexpr,
    num_in: tl.constexpr,
    block_t: tl.constexpr,
    block_k: tl.constexpr,
    is_interpreted: tl.constexpr,
    is_dependent: tl.constexpr,
) -> tl.tensor:
    """[block_n, block_t] float32: W x^T for some rows of W, from the first column to the last."""
    wait_for_launched(is_dependent)
    rows, inner = tl.arange(0, block_t), tl.arange(0, block_k)
    is_row = (rows < num_rows)[:, None]
    # Outputs that are none repeat the last one.
    places = tl.minimum(outputs, num_out - 1).to(tl.int64) * num_in
    weight_row = weight_ptr + places[:, None] + inner[None, :]
    x_row = x_ptr + rows[:, None] * num_in + inner[None, :]
    sums = tl.zeros([outputs.shape[0], block_t], tl.float32)
    for first in range(0, num_in, block_k):
        if num_in % block_k == 0:
            weight = tl.load(weight_row + first)
            x = tl.load(x_row + first, mask=is_row, other=0.0)
        else:
            is_inner = (inner < num_in - first)[None, :]
            weight = tl.load(weight_row + first, mask=is_inner, other=0.0)
            x = tl.load(x_row + first, mask=is_row & is_inner, other=0.0)
        if is_interpreted:  # the interpreter multiplies bfloat16 wrongly
            x, weight = x.to(tl.float32), weight.to(tl.float32)
        sums = tl.dot(weight, tl.trans(x), sums, input_precision="ieee")
    let_next_start(is_dependent)
    return sums


@triton.jit  # type: ignore[untyped-decorator]
def row_scales(  # noqa: PLR0917
    squares_ptr: tl.tensor,  # [T, num_parts] float32
    num_rows: tl.tensor,
    eps: tl.tensor,
    num_parts: tl.constexpr,
    num_in: tl.constexpr,
    block_t: tl.constexpr,
) -> tl.tensor:
    """[block_t]: 1 / sqrt(mean(x^2) + eps), from partial sums of the squares."""
    rows, parts = tl.arange(0, block_t)[:, None], tl.arange(0, triton.next_power_of_2(num_parts))
    mask = (rows < num_rows) & (parts < num_parts)[None, :]
    squares = tl.load(squares_ptr + rows * num_parts + parts[None, :], mask=mask, other=0.0)
    return tl.rsqrt(tl.sum(squares, axis=1) / num_in + eps)


@triton.jit  # type: ignore[untyped-decorator]
def _skinny_linear_kernel(  # noqa: PLR0917  # kernels take their arguments by position
    x_ptr: tl.tensor,  # [T, K]
    weight_ptr: tl.tensor,  # [N, K]
    bias_ptr: tl.tensor,  # [N], or None
    residual_ptr: tl.tensor,  # [T, N], or None
    squares_ptr: tl.tensor,  # [T, num_parts] float32, of x, or None: no scale
    squares_out_ptr: tl.tensor,  # [T, number of programs] float32, of y, or None
    out_ptr: tl.tensor,  # [T, N]
    num_rows: tl.tensor,
    eps: tl.tensor,
    num_out: tl.constexpr, num_in: tl.constexpr, num_parts: tl.constexpr,
    block_n: tl.constexpr, block_t: tl.constexpr, block_k: tl.constexpr,
    is_interpreted: tl.constexpr, is_dependent: tl.constexpr,
) -> None:  # fmt: skip
    rows = tl.arange(0, block_t)
    outputs = tl.program_id(0) * block_n + tl.arange(0, block_n)
    sums = products(
        x_ptr, weight_ptr, outputs, num_rows, num_out, num_in, block_t, block_k, is_interpreted,
        is_dependent,
    )  # fmt: skip
    if squares_ptr is not None:
        sums *= row_scales(squares_ptr, num_rows, eps, num_parts, num_in, block_t)[None, :]
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + outputs, mask=outputs < num_out, other=0.0)
        sums += bias.to(tl.float32)[:, None]
    places = rows[None, :].to(tl.int64) * num_out + outputs[:, None]
    mask = (rows < num_rows)[None, :] & (outputs < num_out)[:, None]
    if residual_ptr is not None:
        sums += tl.load(residual_ptr + places, mask=mask, other=0.0).to(tl.float32)
    y = sums.to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + places, y, mask=mask)
    if squares_out_ptr is not None:
        wide = tl.where(mask, y.to(tl.float32), 0.0)
        part_ptrs = squares_out_ptr + rows * tl.num_programs(0) + tl.program_id(0)
        tl.store(part_ptrs, tl.sum(wide * wide, axis=0), mask=rows < num_rows)


def launch_options(tiles: Tiles, x: Tensor) -> dict[str, Any]:
    """What the kernels of few rows are compiled for, besides their sizes."""
    return {
        "block_n": tiles.block_n,
        "block_t": MAX_ROWS,
        "block_k": tiles.block_k,
        "is_interpreted": not x.is_cuda,
        "num_warps": tiles.num_warps,
        "num_stages": tiles.num_stages,
        **dependent_launch(x),
    }


def skinny_linear(
    x: Tensor,
    weight: Tensor,
    *,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    squares: Tensor | None = None,
    eps: float = 0.0,
    squares_out: Tensor | None = None,
    out: Tensor | None = None,
    tiles: Tiles | None = None,
) -> Tensor:
    """Multiply up to MAX_ROWS rows.

    Args:
        x: [T, K] bf16, float16 or float32, contiguous.
        weight: [N, K] of the same dtype, contiguous; with `squares` times the norm's weight.
        bias: [N].
        residual: [T, N], added before the result is rounded; may be `out`.
        squares: [T, parts] float32, sums of squares of parts of `x`; None: nothing is normalised.
        eps: of the norm.
        squares_out: [T, num_parts_of(N)] float32, overwritten with those of the result.
        out: [T, N]; allocated if not given.
        tiles: to find better ones.

    Returns:
        `out`.
    """
    (num_rows, num_in), num_out = x.shape, len(weight)
    tiles = tiles or tiles_of(num_out)
    num_programs = triton.cdiv(num_out, tiles.block_n)
    out = x.new_empty(num_rows, num_out) if out is None else out
    assert num_rows <= MAX_ROWS
    assert weight.shape[1] == num_in
    assert out.shape == (num_rows, num_out)
    assert squares_out is None or squares_out.shape == (num_rows, num_programs)
    for tensor in (x, weight, out, *(one for one in (bias, residual) if one is not None)):
        assert tensor.is_contiguous()
        assert tensor.dtype == x.dtype
    for one in (squares, squares_out):
        assert one is None or (one.is_contiguous() and one.dtype == torch.float32)
    if not num_rows:
        return out
    _skinny_linear_kernel[(num_programs,)](
        x, weight, bias, residual, squares, squares_out, out, num_rows, eps,
        num_out=num_out,
        num_in=num_in,
        num_parts=1 if squares is None else squares.shape[1],
        **launch_options(tiles, x),
    )  # fmt: skip
    return out
