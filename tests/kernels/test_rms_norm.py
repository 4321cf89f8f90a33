"""RMSNorm against torch's own."""

import pytest
import torch

from kernels.rms_norm import pack_rms_norm, rms_norm_reference


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
@pytest.mark.parametrize("shape", [(1, 1), (5, 63), (3, 1009)])
def test_rows_equal_torch(shape: tuple[int, int], scale: float) -> None:
    """Small rows, where eps matters, and large ones."""
    x, weight = torch.randn(shape) * scale, torch.randn(shape[1])
    expected = torch.rms_norm(x, (shape[1],), weight, 1e-5)
    torch.testing.assert_close(
        rms_norm_reference(x, pack_rms_norm(weight, 1e-5)), expected, atol=1e-6, rtol=1e-5
    )


def test_a_row_of_zeros_stays_zero() -> None:
    """Eps keeps the division finite."""
    norm = pack_rms_norm(torch.ones(8), 1e-6)
    assert torch.equal(rms_norm_reference(torch.zeros(2, 8), norm), torch.zeros(2, 8))


def test_each_head_may_have_its_own_weight() -> None:
    """Queries and keys are normalised together, by weights of [heads, D]."""
    x, weight = torch.randn(5, 3, 16), torch.randn(3, 16)
    expected = torch.stack(
        [torch.rms_norm(x[:, head], (16,), weight[head], 1e-6) for head in range(3)], dim=1
    )
    torch.testing.assert_close(rms_norm_reference(x, pack_rms_norm(weight, 1e-6)), expected)
