"""The library's products, with a bias of zeros and without."""

import pytest
import torch

from shared.engine.gpu.linear import FEW_OUTPUTS, FEW_ROWS, LibraryLinear, gains_by_bias
from tests.shared.engine.passes import assert_close


@pytest.mark.parametrize("num_rows", [1, 63, FEW_ROWS + 1])
@pytest.mark.parametrize(("num_out", "num_in"), [(96, 64), (64, 96), (FEW_OUTPUTS + 1, 8)])
@pytest.mark.parametrize("has_bias", [False, True])
def test_a_product_is_the_product(
    num_rows: int, num_out: int, num_in: int, *, has_bias: bool, device: str
) -> None:
    """Asked for with zeros or without, and where it is to go."""
    generator = torch.Generator().manual_seed(0)
    x, weight = (
        torch.randn(count, num_in, generator=generator).to(device) for count in (num_rows, num_out)
    )
    bias = torch.randn(num_out, generator=generator).to(device) if has_bias else None
    linear = LibraryLinear(torch.float32, x.device)
    expected = x.double() @ weight.double().t()
    if not has_bias:
        out = linear(x, weight, out=x.new_empty(num_rows, num_out))
        assert_close(out, expected.float().cpu(), 1e-4)
    expected += 0 if bias is None else bias.double()
    assert_close(linear(x, weight, bias), expected.float().cpu(), 1e-4)


@pytest.mark.parametrize(
    ("num_rows", "num_out", "num_in", "expected"),
    [(160, 4096, 4096, True), (160, 6144, 4096, True), (160, 4096, 14_336, False),
     (96, 4096, 14_336, True), (96, 28_672, 4096, False)],
)  # fmt: skip
def test_the_way_is_the_one_that_was_measured(
    num_rows: int, num_out: int, num_in: int, *, expected: bool
) -> None:
    """Of an 8B Llama."""
    assert gains_by_bias(num_rows, num_out, num_in) == expected
