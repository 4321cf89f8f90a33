import pytest
import torch

from kernels.gpu.rms_norm import rms_norm_reference
from kernels.gpu.skinny_linear import (
    Tiles,
    num_parts_of,
    skinny_linear,
    skinny_linear_reference,
    tiles_of,
)
from tests.kernels.gpu.compiled import compile_for_sm90

SMALL = Tiles(16, 64, 4, 2)
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 1e-2}


def randn(*shape: int, device: str, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(shape, generator=generator)
    return values.to(device, torch.bfloat16 if device == "cuda" else torch.float32)


def assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Relative to the largest, for sums cancel."""
    error = (found.float() - expected.float()).abs().max() / expected.float().abs().max()
    assert error < TOLERANCE[found.dtype]


@pytest.mark.parametrize("num_rows", [1, 5, 16])
@pytest.mark.parametrize(("num_out", "num_in"), [(1, 1), (63, 96), (130, 1009)])
@pytest.mark.parametrize("kind", ["plain", "bias", "residual", "both"])
def test_it_is_the_reference(
    device: str, num_rows: int, num_out: int, num_in: int, kind: str
) -> None:
    """With and without what is added, at sizes that no tile divides."""
    x = randn(num_rows, num_in, device=device)
    weight = randn(num_out, num_in, device=device, seed=1)
    bias = randn(num_out, device=device, seed=3) if kind in {"bias", "both"} else None
    residual = (
        randn(num_rows, num_out, device=device, seed=4) if kind in {"residual", "both"} else None
    )
    out = x.new_full((num_rows, num_out), float("nan"))
    assert skinny_linear(x, weight, bias=bias, residual=residual, out=out, tiles=SMALL) is out
    assert_close(out, skinny_linear_reference(x, weight, bias=bias, residual=residual))


def test_a_row_does_not_depend_on_the_others(device: str) -> None:
    """Bit for bit alone and among others."""
    x, weight = randn(16, 300, device=device), randn(63, 300, device=device, seed=1)
    together = skinny_linear(x, weight)
    for row in (0, 7, 15):
        assert torch.equal(skinny_linear(x[row : row + 1].contiguous(), weight)[0], together[row])


def test_the_residual_may_be_the_result(device: str) -> None:
    """In place, as the decoder's residual stream is."""
    x, weight = randn(3, 64, device=device), randn(96, 64, device=device, seed=1)
    residual = randn(3, 96, device=device, seed=2)
    expected = skinny_linear_reference(x, weight, residual=residual)
    skinny_linear(x, weight, residual=residual, out=residual)
    assert_close(residual, expected)


def partial_squares(x: torch.Tensor, num_parts: int) -> torch.Tensor:
    """[T, num_parts] sums of the squares of every so-many-th number."""
    wide = x.float().square()
    return torch.stack([wide[:, part::num_parts].sum(1) for part in range(num_parts)], 1)


@pytest.mark.parametrize("num_parts", [1, 5])
def test_rows_may_be_scaled_as_their_norm_scales_them(num_parts: int, device: str) -> None:
    """The product of the normalised row, the norm's weight being part of the matrix."""
    x, weight = randn(5, 1009, device=device), randn(63, 1009, device=device, seed=1)
    bias, eps = randn(63, device=device, seed=2), 1e-2
    squares = partial_squares(x, num_parts)
    found = skinny_linear(x, weight, bias=bias, squares=squares, eps=eps)
    normed = rms_norm_reference(x.float(), torch.ones(1009, device=device), eps)
    assert_close(found, skinny_linear_reference(normed, weight, bias=bias).to(x.dtype))
    expected = skinny_linear_reference(x, weight, bias=bias, squares=squares, eps=eps)
    assert_close(found, expected)


@pytest.mark.parametrize("num_out", [63, 4_160])
def test_the_squares_of_a_result_are_left_behind(num_out: int, device: str) -> None:
    """Of the rounded numbers, residual included, in parts; for rows that are any."""
    x, weight = randn(3, 64, device=device), randn(num_out, 64, device=device, seed=1)
    residual = randn(3, num_out, device=device, seed=2)
    squares = torch.full((3, num_parts_of(num_out)), float("nan"), device=device)
    y = skinny_linear(x, weight, residual=residual, squares_out=squares)
    torch.testing.assert_close(squares.sum(1), y.float().square().sum(1), rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("num_out", "num_in"), [(4_096, 4_096), (4_096, 14_336), (6_144, 4_096), (128_256, 4_096)]
)
def test_production_tiles_fit_a_hopper(num_out: int, num_in: int) -> None:
    """No register is spilled, with everything there is."""
    tiles = tiles_of(num_out)
    pointers = ("x_ptr", "weight_ptr", "bias_ptr", "residual_ptr", "out_ptr")
    constexprs = {
        "num_out": num_out,
        "num_in": num_in,
        "num_parts": 256,
        "block_n": tiles.block_n,
        "block_t": 16,
        "block_k": tiles.block_k,
        "is_interpreted": False,
        "is_dependent": True,
    }
    used = compile_for_sm90(
        "kernels.gpu.skinny_linear",
        "_skinny_linear_kernel",
        dict.fromkeys(pointers, "*bf16")
        | dict.fromkeys(("squares_ptr", "squares_out_ptr"), "*fp32")
        | {"num_rows": "i32", "eps": "fp32"}
        | dict.fromkeys(constexprs, "constexpr"),
        constexprs,
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
    )
    assert used.spill_bytes == 0
    assert used.waits_first
    assert used.shared_bytes <= 227 * 1024 // 2  # two programs on a multiprocessor
