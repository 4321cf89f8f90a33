"""Linear layers in both stored forms."""

import pytest
import torch
from torch import Tensor

from kernels import linear
from kernels.linear import (
    add_linear_reference,
    has_half_kernel,
    is_half_exact,
    linear_reference,
    pack_linear,
)

SHAPES = [(1, 8), (63, 48), (1009, 130)]


def random_layer(num_in: int, num_out: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A weight representable in `dtype`, and a bias."""
    generator = torch.Generator().manual_seed(num_in)
    weight = torch.randn(num_out, num_in, generator=generator).to(dtype).float()
    return weight, torch.randn(num_out, generator=generator)


@pytest.mark.parametrize("num_rows", [1, 5, 63])
@pytest.mark.parametrize(("num_in", "num_out"), SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_products_equal_the_formula(
    dtype: torch.dtype, num_in: int, num_out: int, num_rows: int
) -> None:
    """Either stored form, with and without a bias, alone and added to a residual."""
    weight, bias = random_layer(num_in, num_out, dtype)
    x, residual = torch.randn(num_rows, num_in), torch.randn(num_rows, num_out)
    for own_bias in (None, bias):
        layer = pack_linear(weight, own_bias)
        product = x.double() @ weight.double().t()
        product += bias.double() if own_bias is not None else 0.0
        torch.testing.assert_close(
            linear_reference(x, layer).double(), product, atol=5e-4, rtol=1e-5
        )
        total = residual.clone()
        add_linear_reference(total, x, layer)
        torch.testing.assert_close(
            total.double(), product + residual.double(), atol=5e-4, rtol=1e-5
        )


@pytest.mark.skipif(not has_half_kernel(), reason="this torch or processor has no FBGEMM")
def test_a_row_has_the_same_bits_in_any_batch() -> None:
    """With 16-bit weights a decode and a verify round compute exactly the same."""
    weight, _ = random_layer(384, 640, torch.float16)
    layer = pack_linear(weight)
    x = torch.randn(23, 384)
    rows = torch.cat([linear_reference(x[row : row + 1], layer) for row in range(23)])
    assert torch.equal(rows, linear_reference(x, layer))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.1, False),
        (float(torch.tensor(0.1).half()), True),
        (float(torch.tensor(0.1).bfloat16()), True),
        (65_504.0, True),
        (65_536.0, False),
        (1e-9, True),
        (float("nan"), False),
    ],
)
def test_sixteen_bits_are_used_only_where_they_lose_nothing(
    value: float, *, expected: bool
) -> None:
    """One weight that float16 cannot hold keeps the whole matrix in float32."""
    weight = torch.ones(4, 4)
    weight[2, 3] = value
    assert is_half_exact(weight) is expected
    assert (pack_linear(weight).half is not None) is (expected and has_half_kernel())


def test_without_the_half_kernel_everything_stays_in_float32(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A torch that dropped the deprecated functions is slower, not broken."""
    monkeypatch.delattr(torch, "fbgemm_pack_gemm_matrix_fp16")
    linear.has_half_kernel.cache_clear()
    try:
        layer = pack_linear(torch.eye(3))
        assert layer.half is None
        assert torch.equal(linear_reference(torch.eye(3), layer), torch.eye(3))
    finally:
        linear.has_half_kernel.cache_clear()
