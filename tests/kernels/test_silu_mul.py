"""The feed-forward gate."""

import pytest
import torch

from kernels.silu_mul import silu_mul_reference


@pytest.mark.parametrize("shape", [(1, 1), (5, 63), (3, 1009)])
def test_the_gate_comes_first(shape: tuple[int, int]) -> None:
    """silu of the first half times the second half; the input is left alone."""
    gate, up = torch.randn(shape), torch.randn(shape)
    gate_up = torch.cat([gate, up], dim=1)
    before = gate_up.clone()
    expected = gate / (1 + torch.exp(-gate)) * up
    torch.testing.assert_close(silu_mul_reference(gate_up), expected)
    assert torch.equal(gate_up, before)
