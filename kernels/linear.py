"""Linear layers for few rows: y = x W^T + b, and the same added to a residual stream.

Activations, sums and results are float32. A decode step is bound by reading W, so W is kept in 16
bits where that loses nothing: most checkpoints are stored in 16 bits to begin with. FBGEMM
multiplies float32 rows by float16 weights and, unlike MKL, gives a row the same bits in any batch.

Measured on one core of an AMD EPYC 9004 in us, in 384 -> out 2,048, six matrices in turn, at 1 / 5
/ 16 / 80 rows: FBGEMM 33 / 88 / 258 / 1,250; MKL with W stored [in, out] 90 / 380 / 760 / 1,720;
MKL with W stored [out, in], which is what torch.nn.Linear does, 290 / 400 / 830 / 1,670. oneDNN was
in between.
"""

import warnings
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

# Half a step of the smallest float16 numbers: what rounding to them can cost at most.
SUBNORMAL_ERROR = 2.0**-25


@dataclass(frozen=True, slots=True)
class PackedLinear:
    """A weight in the layout that multiplies fastest. Exactly one of the two forms is set."""

    half: Tensor | None  # opaque, FBGEMM's blocks of float16
    full: Tensor | None  # [in, out] float32
    bias: Tensor | None  # [out] float32


def pack_linear(weight: Tensor, bias: Tensor | None = None) -> PackedLinear:
    """Prepare `weight` [out, in] float32, and `bias` [out] float32, for `linear_reference`."""
    if is_half_exact(weight) and has_half_kernel():
        packed = torch.fbgemm_pack_gemm_matrix_fp16(weight.contiguous())
        return PackedLinear(half=packed, full=None, bias=bias)
    return PackedLinear(half=None, full=weight.t().contiguous(), bias=bias)


def is_half_exact(weight: Tensor) -> bool:
    """Whether float16 holds every element of `weight` float32, up to SUBNORMAL_ERROR."""
    return bool(((weight.half().float() - weight).abs() <= SUBNORMAL_ERROR).all())


@cache
def has_half_kernel() -> bool:
    """Whether this torch on this processor multiplies float32 by packed float16.

    The two functions are marked as deprecated: they are tried once, with the warning silenced, and
    where they are gone everything stays in float32. Their successor
    (`torch.ops.quantized.linear_dynamic_fp16`) runs the same code but costs 10 us more a call,
    twice the multiplication itself for a small draft.
    """
    weight = torch.eye(2)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            packed = torch.fbgemm_pack_gemm_matrix_fp16(weight)
            product = torch.fbgemm_linear_fp16_weight_fp32_activation(weight, packed, None)
    except (AttributeError, RuntimeError):
        return False
    return torch.equal(product, weight)


def linear_reference(x: Tensor, linear: PackedLinear) -> Tensor:
    """Multiply `x` [T, in] float32, giving [T, out] float32."""
    if linear.half is not None:
        return torch.fbgemm_linear_fp16_weight_fp32_activation(x, linear.half, linear.bias)
    assert linear.full is not None
    if linear.bias is not None:
        return torch.addmm(linear.bias, x, linear.full)
    return torch.mm(x, linear.full)


def add_linear_reference(residual: Tensor, x: Tensor, linear: PackedLinear) -> None:
    """Add the product of `x` [T, in] to `residual` [T, out], both float32, in place."""
    if linear.half is not None or linear.bias is not None:
        residual.add_(linear_reference(x, linear))
        return
    assert linear.full is not None
    residual.addmm_(x, linear.full)
