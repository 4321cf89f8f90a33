"""RMSNorm on the GPU, with and without the residual add, against its reference."""

import pytest
import torch
from torch import Tensor

from kernels.gpu.rms_norm import (
    add_rms_norm,
    add_rms_norm_reference,
    num_warps_of,
    rms_norm,
    rms_norm_reference,
    row_squares,
)
from tests.kernels.gpu.compiled import compile_for_sm90

EPS = 1e-5
# Of the largest value: a last bit of float16; two of bfloat16, which the interpreter cuts off
# where the GPU rounds.
TOLERANCES = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 1.6e-2}
DTYPES = pytest.mark.parametrize("dtype", TOLERANCES)
SHAPES = pytest.mark.parametrize("shape", [(1, 1), (5, 63), (3, 1009), (2, 4096), (1, 16_384)])


def assert_near(actual: Tensor, expected: Tensor) -> None:
    tolerance = TOLERANCES[expected.dtype] * float(expected.abs().max())
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=0)


@DTYPES
@SHAPES
def test_rows_equal_the_reference(shape: tuple[int, int], dtype: torch.dtype, device: str) -> None:
    """Every row and every column is written, and nothing else is read."""
    x = torch.randn(shape, device=device).to(dtype)
    weight = torch.randn(shape[1], device=device).to(dtype)
    out = torch.full_like(x, float("nan"))

    assert rms_norm(x, weight, EPS, out) is out

    assert_near(out, rms_norm_reference(x, weight, EPS))


@DTYPES
@SHAPES
def test_the_residual_holds_the_rounded_sum_and_the_norm_is_of_it(
    shape: tuple[int, int], dtype: torch.dtype, device: str
) -> None:
    """The sum is rounded once; x stays."""
    x = torch.randn(shape, device=device).to(dtype)
    residual = torch.randn(shape, device=device).to(dtype)
    weight = torch.randn(shape[1], device=device).to(dtype)
    before, expected_residual = x.clone(), residual.clone()
    out = torch.full_like(x, float("nan"))

    assert add_rms_norm(x, residual, weight, EPS, out) is out

    expected = add_rms_norm_reference(x, expected_residual, weight, EPS)
    assert_near(residual, expected_residual)
    assert_near(out, expected)
    assert torch.equal(x, before)


def test_the_quotient_is_rounded_before_the_product(device: str) -> None:
    """As in transformers: rounding once would give other bits in a quarter of the numbers."""
    x = torch.randn(5, 1009, device=device).half()
    residual = torch.randn(5, 1009, device=device).half()
    weight = torch.randn(1009, device=device).half()
    expected = add_rms_norm_reference(x, residual.clone(), weight, EPS)
    assert add_rms_norm(x, residual, weight, EPS).ne(expected).float().mean() < 0.01


def test_a_residual_may_be_wider_than_its_rows(device: str) -> None:
    """A float32 stream loses nothing, and what is normalised has the weight's dtype."""
    x = torch.randn(3, 63, device=device).half()
    residual = torch.randn(3, 63, device=device)
    weight = torch.randn(63, device=device).half()
    total = residual + x.float()

    out = add_rms_norm(x, residual, weight, EPS)

    assert torch.equal(residual, total)
    assert out.dtype == torch.float16
    assert_near(out, rms_norm_reference(total, weight, EPS))


@pytest.mark.parametrize("scale", [0.0, 1e-4, 1e4])
def test_eps_matters_for_small_rows_alone(scale: float, device: str) -> None:
    """A row of zeros stays zero, and a large one is normalised."""
    x, weight = torch.randn(2, 1009, device=device) * scale, torch.ones(1009, device=device)
    torch.testing.assert_close(rms_norm(x, weight, EPS), torch.rms_norm(x, (1009,), weight, EPS))


def test_a_row_has_the_same_bits_in_any_batch(device: str) -> None:
    """Alone, among others, in place, and beside rows that are no numbers."""
    x, weight = torch.randn(63, 1009, device=device), torch.randn(1009, device=device)
    x[7] = float("nan")
    together = rms_norm(x, weight, EPS)
    for row in (0, 31, 62):
        alone = x[row : row + 1].clone()
        assert torch.equal(rms_norm(alone, weight, EPS, alone)[0], together[row])
    assert together.isnan().any(dim=1).nonzero().tolist() == [[7]]


@pytest.mark.parametrize("num_rows", [1, 63])
def test_the_squares_of_a_row_are_added_up(num_rows: int, device: str) -> None:
    """At a size that no program divides."""
    x = torch.randn(num_rows, 1009, device=device)
    torch.testing.assert_close(row_squares(x), x.square().sum(1, keepdim=True))


@pytest.mark.parametrize("dim", [4096, 16_384])
def test_the_production_configuration_fits_a_gpu(dim: int) -> None:
    """A row of the largest models stays in registers."""
    resources = compile_for_sm90(
        "kernels.gpu.rms_norm",
        "_rms_norm_kernel",
        {
            "x_ptr": "*bf16",
            "residual_ptr": "*bf16",
            "weight_ptr": "*bf16",
            "out_ptr": "*bf16",
            "eps": "fp32",
            "dim": "constexpr",
            "is_dependent": "constexpr",
        },
        {"dim": dim, "is_dependent": True},
        num_warps=num_warps_of(dim),
        num_stages=1,
    )
    assert resources.spill_bytes == 0
    assert resources.waits_first
