"""The gated half of a feed-forward layer for few rows: y = silu(g) u, with g and u two products.

[g, u] = s (x W^T) + b as in `skinny_linear`; a program computes the same outputs of both, rounds
them as they would be stored, and stores their product rounded as `silu_mul` rounds it.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu.dependent_launch import let_next_start, wait_for_launched
from kernels.gpu.silu_mul import silu_mul_reference
from kernels.gpu.skinny_linear import (
    MAX_ROWS,
    Tiles,
    launch_options,
    row_scales,
    skinny_linear_reference,
)

TILES = Tiles(64, 128, 4, 3)  # two tiles of W at a time; pinned as in `skinny_linear`


def skinny_gate_reference(
    x: Tensor, weight: Tensor, *, bias: Tensor | None = None, squares: Tensor, eps: float
) -> Tensor:
    """By definition; arguments as `skinny_gate`."""
    return silu_mul_reference(
        skinny_linear_reference(x, weight, bias=bias, squares=squares, eps=eps)
    )


@triton.jit  # type: ignore[untyped-decorator]
def _skinny_gate_kernel(  # noqa: PLR0917  # kernels take their arguments by position
    x_ptr: tl.tensor,  # [T, K]
    weight_ptr: tl.tensor,  # [2 x I, K], gate first
    bias_ptr: tl.tensor,  # [2 x I], or None
    squares_ptr: tl.tensor,  # [T, num_parts] float32, of x
    out_ptr: tl.tensor,  # [T, I]
    num_rows: tl.tensor,
    eps: tl.tensor,
    num_out: tl.constexpr, num_in: tl.constexpr, num_parts: tl.constexpr,  # I, K
    block_n: tl.constexpr, block_t: tl.constexpr, block_k: tl.constexpr,
    is_interpreted: tl.constexpr, is_dependent: tl.constexpr,
) -> None:  # fmt: skip
    rows, inner = tl.arange(0, block_t), tl.arange(0, block_k)
    outputs = tl.program_id(0) * block_n + tl.arange(0, block_n)
    is_row, is_output = rows < num_rows, outputs < num_out
    # Outputs that are none repeat the last one.
    places = tl.minimum(outputs, num_out - 1).to(tl.int64) * num_in
    gate_row = weight_ptr + places[:, None] + inner[None, :]
    x_row = x_ptr + rows[:, None] * num_in + inner[None, :]
    gates = tl.zeros([block_n, block_t], tl.float32)
    ups = tl.zeros([block_n, block_t], tl.float32)
    wait_for_launched(is_dependent)
    for first in range(0, num_in, block_k):
        is_inner = (inner < num_in - first)[None, :]
        x = tl.load(x_row + first, mask=is_row[:, None] & is_inner, other=0.0)
        gate = tl.load(gate_row + first, mask=is_inner, other=0.0)
        up = tl.load(gate_row + first + num_out * num_in, mask=is_inner, other=0.0)
        if is_interpreted:  # the interpreter multiplies bfloat16 wrongly
            x, gate, up = x.to(tl.float32), gate.to(tl.float32), up.to(tl.float32)
        gates = tl.dot(gate, tl.trans(x), gates, input_precision="ieee")
        ups = tl.dot(up, tl.trans(x), ups, input_precision="ieee")
    let_next_start(is_dependent)
    scales = row_scales(squares_ptr, num_rows, eps, num_parts, num_in, block_t)[None, :]
    gates, ups = gates * scales, ups * scales
    if bias_ptr is not None:
        gate_bias = tl.load(bias_ptr + outputs, mask=is_output, other=0.0)
        up_bias = tl.load(bias_ptr + num_out + outputs, mask=is_output, other=0.0)
        gates += gate_bias.to(tl.float32)[:, None]
        ups += up_bias.to(tl.float32)[:, None]
    dtype: tl.constexpr = out_ptr.dtype.element_ty
    gates, ups = gates.to(dtype).to(tl.float32), ups.to(dtype).to(tl.float32)
    gated = (gates / (1.0 + tl.exp(-gates))).to(dtype)
    y = (gated.to(tl.float32) * ups).to(dtype)
    out_places = rows[None, :].to(tl.int64) * num_out + outputs[:, None]
    tl.store(out_ptr + out_places, y, mask=is_row[None, :] & is_output[:, None])


def skinny_gate(
    x: Tensor,
    weight: Tensor,
    *,
    bias: Tensor | None = None,
    squares: Tensor,
    eps: float,
    tiles: Tiles = TILES,
) -> Tensor:
    """Multiply up to MAX_ROWS rows, and gate.

    Args:
        x: [T, K] bf16, float16 or float32, contiguous.
        weight: [2 x I, K] of the same dtype, contiguous, gate first, times the norm's weight.
        bias: [2 x I].
        squares: [T, parts] float32, sums of squares of parts of `x`.
        eps: of the norm.
        tiles: to find better ones.

    Returns:
        [T, I].
    """
    (num_rows, num_in), num_out = x.shape, len(weight) // 2
    out = x.new_empty(num_rows, num_out)
    assert num_rows <= MAX_ROWS
    assert weight.shape == (2 * num_out, num_in)
    assert len(squares) == num_rows
    assert squares.dtype == torch.float32
    for tensor in (x, weight, squares, *(() if bias is None else (bias,))):
        assert tensor.is_contiguous()
    assert x.dtype == weight.dtype
    if not num_rows:
        return out
    _skinny_gate_kernel[(triton.cdiv(num_out, tiles.block_n),)](
        x, weight, bias, squares, out, num_rows, eps,
        num_out=num_out,
        num_in=num_in,
        num_parts=squares.shape[1],
        **launch_options(tiles, x),
    )  # fmt: skip
    return out
