"""Gate and up of few rows against the formula."""

import pytest
import torch

from kernels.gpu.skinny_gate import TILES, skinny_gate, skinny_gate_reference
from kernels.gpu.skinny_linear import Tiles
from tests.kernels.gpu.compiled import compile_for_sm90
from tests.kernels.gpu.test_skinny_linear import assert_close, partial_squares, randn

SMALL = Tiles(16, 64, 4, 2)


@pytest.mark.parametrize("num_rows", [1, 5, 16])
@pytest.mark.parametrize(("num_out", "num_in"), [(1, 1), (63, 96), (130, 1009)])
@pytest.mark.parametrize("has_bias", [False, True])
def test_it_is_the_reference(
    *, num_rows: int, num_out: int, num_in: int, has_bias: bool, device: str
) -> None:
    """At sizes that no tile divides."""
    x = randn(num_rows, num_in, device=device)
    weight = randn(2 * num_out, num_in, device=device, seed=1) / num_in**0.5
    bias = randn(2 * num_out, device=device, seed=2) if has_bias else None
    squares = partial_squares(x, 3) if num_in > 1 else x.float().square()
    found = skinny_gate(x, weight, bias=bias, squares=squares, eps=1e-5, tiles=SMALL)
    assert_close(found, skinny_gate_reference(x, weight, bias=bias, squares=squares, eps=1e-5))


def test_a_row_does_not_depend_on_the_others(device: str) -> None:
    """Bit for bit alone and among others."""
    x, weight = randn(16, 300, device=device), randn(126, 300, device=device, seed=1)
    squares = partial_squares(x, 4)
    together = skinny_gate(x, weight, squares=squares, eps=1e-5)
    for row in (0, 7, 15):
        own = slice(row, row + 1)
        alone = skinny_gate(x[own].contiguous(), weight, squares=squares[own].clone(), eps=1e-5)
        assert torch.equal(alone[0], together[row])


@pytest.mark.filterwarnings("ignore:overflow")  # numpy's, in the interpreter: it is meant
def test_a_large_gate_closes_and_opens(device: str) -> None:
    """silu of -1,000 is 0 and of 1,000 itself: no exponential overflows into NaN."""
    x = torch.ones(1, 16, device=device, dtype=randn(1, device=device).dtype)
    weight = torch.cat([torch.full((2, 16), -62.5), torch.full((2, 16), 1.0)])
    weight[1] = 62.5
    squares = torch.full((1, 1), 16.0, device=device)
    found = skinny_gate(x, weight.to(x), squares=squares, eps=1e-9)
    assert found.tolist() == [[0.0, 16_000.0]]


@pytest.mark.parametrize(("num_out", "num_in"), [(14_336, 4_096), (8_192, 2_048)])
def test_production_tiles_fit_a_hopper(num_out: int, num_in: int) -> None:
    """No register is spilled."""
    constexprs = {
        "num_out": num_out,
        "num_in": num_in,
        "num_parts": 256,
        "block_n": TILES.block_n,
        "block_t": 16,
        "block_k": TILES.block_k,
        "is_interpreted": False,
        "is_dependent": True,
    }
    used = compile_for_sm90(
        "kernels.gpu.skinny_gate",
        "_skinny_gate_kernel",
        dict.fromkeys(("x_ptr", "weight_ptr", "bias_ptr", "out_ptr"), "*bf16")
        | {"squares_ptr": "*fp32", "num_rows": "i32", "eps": "fp32"}
        | dict.fromkeys(constexprs, "constexpr"),
        constexprs,
        num_warps=TILES.num_warps,
        num_stages=TILES.num_stages,
    )
    assert used.spill_bytes == 0
    assert used.waits_first
    assert used.shared_bytes <= 227 * 1024 // 2  # two programs on a multiprocessor
