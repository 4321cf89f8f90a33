"""The gate of the feed-forward layer: y = silu(gate) x up, with silu(z) = z / (1 + exp(-z)).

Rounded where transformers rounds: silu is computed in float32 and rounded to the dtype of the row,
and so is the product.

Source: SwiGLU, Shazeer 2020, arXiv:2002.05202.
"""

import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  # torch's own name for it

from kernels.gpu.dependent_launch import dependent_launch, let_next_start, wait_for_launched

# One 16-byte load of bf16 a thread and operand: one row of 14,336 still fills 14 programs.
BLOCK_SIZE = 1024
NUM_WARPS = 4


def silu_mul_reference(gate_up: Tensor) -> Tensor:
    """[T, 2 x I], gate first, to [T, I]."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate.float()).to(gate.dtype) * up


@triton.jit  # type: ignore[untyped-decorator]
def _silu_mul_kernel(
    gate_up_ptr: tl.tensor,  # [T, 2 x I]
    out_ptr: tl.tensor,  # [T, I], of the same dtype
    dim: tl.constexpr,  # I
    block_size: tl.constexpr,
    is_dependent: tl.constexpr,
) -> None:
    let_next_start(is_dependent)
    wait_for_launched(is_dependent)
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * block_size + tl.arange(0, block_size)
    is_inside = columns < dim
    places = gate_up_ptr + row * (2 * dim) + columns
    gate = tl.load(places, mask=is_inside, other=0.0)
    up = tl.load(places + dim, mask=is_inside, other=0.0)
    wide = gate.to(tl.float32)
    # exp overflows to infinity below -88, and the quotient is the 0 that it should be.
    rounded = (wide / (1.0 + tl.exp(-wide))).to(gate.dtype)
    y = (rounded.to(tl.float32) * up.to(tl.float32)).to(gate.dtype)
    tl.store(out_ptr + row * dim + columns, y, mask=is_inside)


def silu_mul(gate_up: Tensor, out: Tensor | None = None) -> Tensor:
    """Multiply the second half of every row by silu of the first.

    Args:
        gate_up: [T, 2 x I] bf16, float16 or float32, contiguous, gate first.
        out: [T, I] of the same dtype, contiguous, apart from `gate_up`; allocated if not given.

    Returns:
        `out`.
    """
    num_rows, width = gate_up.shape
    dim = width // 2
    out = gate_up.new_empty(num_rows, dim) if out is None else out
    assert width == 2 * dim
    assert out.shape == (num_rows, dim)
    assert out.dtype == gate_up.dtype
    assert gate_up.is_contiguous()
    assert out.is_contiguous()
    grid = (num_rows, triton.cdiv(dim, BLOCK_SIZE))
    _silu_mul_kernel[grid](
        gate_up, out, dim=dim, block_size=BLOCK_SIZE, num_warps=NUM_WARPS, num_stages=1,
        **dependent_launch(gate_up),
    )  # fmt: skip
    return out
