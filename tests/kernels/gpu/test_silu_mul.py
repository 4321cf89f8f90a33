"""The gate of the feed-forward layer on the GPU against its reference."""

import pytest
import torch

from kernels.gpu.silu_mul import BLOCK_SIZE, NUM_WARPS, silu_mul, silu_mul_reference
from tests.kernels.gpu.compiled import compile_for_sm90

# Of the largest value: a last bit of float16; two of bfloat16, which the interpreter cuts off
# where the GPU rounds.
TOLERANCES = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 1.6e-2}


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("shape", [(1, 1), (63, 63), (5, 1009), (2, 14_336), (1, 65_536)])
def test_rows_equal_the_reference(shape: tuple[int, int], dtype: torch.dtype, device: str) -> None:
    """Every row and every column is written, and the halves are not mixed up."""
    gate_up = (4 * torch.randn(shape[0], 2 * shape[1], device=device)).to(dtype)
    out = torch.full(shape, float("nan"), dtype=dtype, device=device)

    assert silu_mul(gate_up, out) is out

    expected = silu_mul_reference(gate_up)
    tolerance = TOLERANCES[dtype] * float(expected.abs().max())
    torch.testing.assert_close(out, expected, atol=tolerance, rtol=0)


@pytest.mark.filterwarnings("ignore:overflow")  # numpy's, in the interpreter: it is meant
def test_large_gates_neither_overflow_nor_vanish(device: str) -> None:
    """silu is the identity far to the right and zero far to the left."""
    gate_up = torch.tensor([[-1e4, -90.0, 0.0, 90.0, 1e4] + [2.0] * 5], device=device)
    expected = torch.tensor([[0.0, 0.0, 0.0, 180.0, 2e4]], device=device)
    torch.testing.assert_close(silu_mul(gate_up), expected)


def test_silu_is_rounded_before_the_product(device: str) -> None:
    """As in transformers: rounding once would give other bits in a quarter of the numbers."""
    gate_up = torch.randn(5, 2 * 1009, device=device).half()
    expected = silu_mul_reference(gate_up)
    assert silu_mul(gate_up).ne(expected).float().mean() < 0.01


def test_a_row_has_the_same_bits_in_any_batch(device: str) -> None:
    """Alone, among others, and beside rows that are no numbers."""
    gate_up = torch.randn(63, 2 * 1009, device=device)
    gate_up[7] = float("nan")
    together = silu_mul(gate_up)
    for row in (0, 31, 62):
        assert torch.equal(silu_mul(gate_up[row : row + 1].clone())[0], together[row])
    assert together.isnan().any(dim=1).nonzero().tolist() == [[7]]


def test_the_production_configuration_fits_a_gpu() -> None:
    """Without a spill."""
    resources = compile_for_sm90(
        "kernels.gpu.silu_mul",
        "_silu_mul_kernel",
        {
            "gate_up_ptr": "*bf16",
            "out_ptr": "*bf16",
            "dim": "constexpr",
            "block_size": "constexpr",
            "is_dependent": "constexpr",
        },
        {"dim": 14_336, "block_size": BLOCK_SIZE, "is_dependent": True},
        num_warps=NUM_WARPS,
        num_stages=1,
    )
    assert resources.spill_bytes == 0
    assert resources.waits_first
