"""RMSNorm, alone and after the residual add: y = x / sqrt(mean(x^2) + eps) * w.

Rounded where transformers' LlamaRMSNorm rounds: squares, mean and quotient are float32; the
quotient is rounded to the weight's dtype, and so is its product with the weight. The residual sum
is formed in float32 and rounded once, to the residual's dtype; what is normalised is the rounded
sum.

A row is one program, and its shape depends on H alone: a row has the same bits in any batch.

Source: Zhang and Sennrich 2019, arXiv:1910.07467.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu.dependent_launch import dependent_launch, let_next_start, wait_for_launched

MAX_DIM = 16_384  # A row lives in the registers of one program.
# Two 16-byte loads of bf16 a thread: fewer leave lanes idle, more make one row wait for itself.
ELEMENTS_PER_WARP = 512
ALIGNMENT_BYTES = 16


def rms_norm_reference(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Normalise the rows of `x` [T, H]; the result has the dtype of `weight` [H]."""
    wide = x.float()
    scale = torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + eps)
    return (wide * scale).to(weight.dtype) * weight


def add_rms_norm_reference(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Add `x` [T, H] to `residual` [T, H] where it is, and normalise the sum."""
    residual.copy_(residual.float() + x.float())
    return rms_norm_reference(residual, weight, eps)


@triton.jit  # type: ignore[untyped-decorator]
def _rms_norm_kernel(  # noqa: PLR0917  # kernels take theirs by position
    x_ptr: tl.tensor,  # [T, H]
    residual_ptr: tl.tensor,  # [T, H], changed in place, or None
    weight_ptr: tl.tensor,  # [H]
    out_ptr: tl.tensor,  # [T, H], of the weight's dtype
    eps: float,
    dim: tl.constexpr,
    is_dependent: tl.constexpr,
) -> None:
    let_next_start(is_dependent)
    wait_for_launched(is_dependent)
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, triton.next_power_of_2(dim))
    is_inside = columns < dim
    # Asked for before the row is needed: the two reads overlap.
    weight = tl.load(weight_ptr + columns, mask=is_inside, other=0.0)
    x = tl.load(x_ptr + row * dim + columns, mask=is_inside, other=0.0).to(tl.float32)
    if residual_ptr is not None:
        places = residual_ptr + row * dim + columns
        residual = tl.load(places, mask=is_inside, other=0.0)
        total = (residual.to(tl.float32) + x).to(residual.dtype)
        tl.store(places, total, mask=is_inside)
        x = total.to(tl.float32)
    scale = tl.rsqrt(tl.sum(x * x, axis=0) / dim + eps)
    rounded = (x * scale).to(weight.dtype)
    # A product of two 16-bit numbers is exact in float32: rounded once, as torch does it.
    y = (rounded.to(tl.float32) * weight.to(tl.float32)).to(weight.dtype)
    tl.store(out_ptr + row * dim + columns, y, mask=is_inside)


def rms_norm(x: Tensor, weight: Tensor, eps: float, out: Tensor | None = None) -> Tensor:
    """Normalise every row.

    Args:
        x: [T, H] bf16, float16 or float32, contiguous; H at most MAX_DIM.
        weight: [H].
        eps: added to the mean of squares.
        out: [T, H] of the weight's dtype, contiguous, may be `x` itself; allocated if not given.

    Returns:
        `out`.
    """
    out = torch.empty_like(x, dtype=weight.dtype) if out is None else out
    _launch(x, None, weight, eps, out)
    return out


def add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float, out: Tensor | None = None
) -> Tensor:
    """Add `x` to the residual stream in place and normalise the sum.

    Args:
        x: [T, H] bf16, float16 or float32, contiguous; H at most MAX_DIM.
        residual: [T, H], contiguous, of any of these dtypes; holds the sum afterwards.
        weight: [H].
        eps: added to the mean of squares.
        out: [T, H] of the weight's dtype, contiguous, may be `x` itself; allocated if not given.

    Returns:
        `out`.
    """
    out = torch.empty_like(x, dtype=weight.dtype) if out is None else out
    assert residual.shape == x.shape
    _launch(x, residual, weight, eps, out)
    return out


def num_warps_of(dim: int) -> int:
    """Warps of the program of one row: a function of the model, never of the batch."""
    return min(32, max(1, int(triton.next_power_of_2(dim)) // ELEMENTS_PER_WARP))


def _launch(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float, out: Tensor) -> None:
    num_rows, dim = x.shape
    assert dim <= MAX_DIM
    assert weight.shape == (dim,)
    assert out.shape == x.shape
    assert out.dtype == weight.dtype
    assert weight.is_contiguous()
    for rows in (x, out) if residual is None else (x, residual, out):
        assert rows.is_contiguous()
        # Triton compiles another program, which sums in another order, for what is not aligned.
        assert rows.data_ptr() % ALIGNMENT_BYTES == 0
    _rms_norm_kernel[(num_rows,)](
        x, residual, weight, out, eps, dim=dim, num_warps=num_warps_of(dim), num_stages=1,
        **dependent_launch(x),
    )  # fmt: skip


@triton.jit  # type: ignore[untyped-decorator]
def _row_squares_kernel(
    x_ptr: tl.tensor,  # [T, H]
    out_ptr: tl.tensor,  # [T] float32
    dim: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, triton.next_power_of_2(dim))
    x = tl.load(x_ptr + row * dim + columns, mask=columns < dim, other=0.0).to(tl.float32)
    tl.store(out_ptr + row, tl.sum(x * x, axis=0))


def row_squares(x: Tensor) -> Tensor:
    """Sums of the squares of rows.

    Args:
        x: [T, H] bf16, float16 or float32, contiguous; H at most MAX_DIM.

    Returns:
        [T, 1] float32.
    """
    num_rows, dim = x.shape
    assert dim <= MAX_DIM
    assert x.is_contiguous()
    out = torch.empty(num_rows, 1, dtype=torch.float32, device=x.device)
    _row_squares_kernel[(num_rows,)](x, out, dim=dim, num_warps=num_warps_of(dim), num_stages=1)
    return out
