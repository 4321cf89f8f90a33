"""Linear layers against the formula, and the same bits of a row in any company."""

import pytest
import torch
from torch import Tensor

from kernels.gpu.invariant_linear import (
    FLOAT32_TILES,
    TILES,
    Tiles,
    invariant_linear,
    invariant_linear_reference,
    tiles_of,
)
from tests.kernels.gpu.compiled import compile_for_sm90

TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 1e-2}
ALL_TILES = sorted({tiles for by_rows in TILES.values() for tiles in by_rows.values()})
IN_TWO_PARTS = Tiles(64, 32, 16, 64, 4, 2)
MATRICES = {  # of Llama-3-8B: outputs, inputs
    "qkv": (6_144, 4_096),
    "output": (4_096, 4_096),
    "gate_up": (28_672, 4_096),
    "down": (4_096, 14_336),
    "head": (128_256, 4_096),
}


def randn(*shape: int, device: str, seed: int = 0) -> Tensor:
    generator = torch.Generator(device).manual_seed(seed)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    return torch.randn(shape, generator=generator, device=device).to(dtype)


def multiply(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, tiles: Tiles | None = None
) -> Tensor:
    """Into memory that holds no number."""
    out = x.new_full((len(x), len(weight)), float("nan"))
    assert invariant_linear(x, weight, bias, out=out, tiles=tiles) is out
    return out


def assert_close(found: Tensor, expected: Tensor) -> None:
    """Relative to the largest, for sums cancel."""
    error = (found.float() - expected.float()).abs().max() / expected.float().abs().max()
    assert error < TOLERANCE[found.dtype]


@pytest.mark.parametrize("tiles", [None, IN_TWO_PARTS], ids=["default", "two-parts"])
@pytest.mark.parametrize("num_rows", [1, 63])
@pytest.mark.parametrize(("num_out", "num_in"), [(1, 8), (63, 96), (130, 1_016), (1_009, 64)])
@pytest.mark.parametrize("has_bias", [False, True])
def test_it_is_the_reference(  # noqa: PLR0917 - parameters of the test
    device: str,
    num_rows: int,
    num_out: int,
    num_in: int,
    has_bias: bool,  # noqa: FBT001 - a parameter of the test
    tiles: Tiles | None,
) -> None:
    """With and without a bias, at sizes that no tile divides."""
    x = randn(num_rows, num_in, device=device)
    weight = randn(num_out, num_in, device=device, seed=1)
    bias = randn(num_out, device=device, seed=2) if has_bias else None
    assert_close(multiply(x, weight, bias, tiles), invariant_linear_reference(x, weight, bias))


def test_no_rows_are_no_work(device: str) -> None:
    """A pass whose logits nobody asks for has none."""
    assert multiply(randn(0, 64, device=device), randn(32, 64, device=device)).shape == (0, 32)


def test_a_row_has_the_same_bits_in_any_company(device: str) -> None:
    """Alone, at the other end of a tile, and in a tile that is not the first."""
    x, weight = randn(130, 200, device=device), randn(63, 200, device=device, seed=1)
    expected = multiply(x, weight)
    for num_rows in (1, 5, 16, 17, 64, 65):
        assert torch.equal(multiply(x[:num_rows].clone(), weight), expected[:num_rows])
    assert torch.equal(multiply(x.flip(0), weight).flip(0), expected)


@pytest.mark.filterwarnings("ignore:invalid value encountered in matmul:RuntimeWarning")
def test_what_comes_of_other_rows_is_not_in_the_way(device: str) -> None:
    """Rows of infinities and of no numbers beside a row leave it alone."""
    x, weight = randn(20, 200, device=device), randn(63, 200, device=device, seed=1)
    expected = multiply(x, weight)
    x[3], x[18] = float("inf"), float("nan")
    found = multiply(x, weight)
    kept = [row for row in range(20) if row not in {3, 18}]
    assert torch.equal(found[kept], expected[kept])


def test_every_number_of_rows_has_tiles() -> None:
    """The first that hold them; without tensor cores one for all."""
    for num_out in (64, 6_144, 128_256):
        sizes = [tiles_of(num_rows, num_out, torch.bfloat16).num_rows for num_rows in (1, 16, 17)]
        assert sizes == [16, 16, 32]
        assert tiles_of(100_000, num_out, torch.float16).num_rows == 256
        assert tiles_of(100_000, num_out, torch.float32) == FLOAT32_TILES


@pytest.mark.parametrize(
    "tiles", [*ALL_TILES, FLOAT32_TILES], ids=lambda tiles: "/".join(map(str, tiles))
)
def test_production_tiles_fit_a_hopper(tiles: Tiles) -> None:
    """No register is spilled."""
    constexprs = {
        "more_tiles": None,
        "bias_ptr": None,
        "block_n": tiles.block_n,
        "block_t": tiles.block_t,
        "more_t": tiles.more_t,
        "block_k": tiles.block_k,
        "is_interpreted": False,
        "is_dependent": True,
    }
    dtype = "fp32" if tiles == FLOAT32_TILES else "bf16"
    sizes = {"x_tiles": tiles.block_t, "more_tiles": tiles.more_t, "weight_tiles": tiles.block_n}
    if tiles.more_t:
        del constexprs["more_tiles"]
    used = compile_for_sm90(
        "kernels.gpu.invariant_linear",
        "_invariant_linear_kernel",
        {name: f"tensordesc<{dtype}[{size}, {tiles.block_k}]>" for name, size in sizes.items()}
        | {"out_ptr": f"*{dtype}"}
        | dict.fromkeys(("num_rows", "num_out", "num_in"), "i32")
        | dict.fromkeys(constexprs, "constexpr"),
        constexprs,
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
        divisible=("num_out", "num_in"),
    )
    assert used.spill_bytes == 0
    assert used.waits_first
    assert used.shared_bytes <= 227 * 1024


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", MATRICES)
def test_rows_of_real_matrices_have_the_same_bits(name: str, dtype: torch.dtype) -> None:
    """By every tile that is used, alone, among few and among many."""
    num_out, num_in = MATRICES[name]
    x = randn(320, num_in, device="cuda").to(dtype)
    weight = (torch.randn(num_out, num_in, device="cuda") / num_in**0.5).to(dtype)
    expected = multiply(x, weight)
    assert_close(expected.bfloat16(), invariant_linear_reference(x, weight).bfloat16())
    for tiles in ALL_TILES:
        assert torch.equal(multiply(x, weight, tiles=tiles), expected), tiles
    for num_rows in (1, 2, 5, 16, 17, 40, 64, 100, 160, 224, 256, 384, 512, 1_100):
        rows = torch.arange(num_rows, device="cuda").flip(0) % 320
        assert torch.equal(multiply(x[rows], weight), expected[rows]), num_rows
    for row in range(320):
        assert torch.equal(multiply(x[row : row + 1], weight)[0], expected[row]), row


@pytest.mark.gpu
def test_numbers_beyond_31_bits_are_found() -> None:
    """A matrix and a result of more elements than an int32 counts."""
    num_out, num_in = 270_000, 8_192
    weight = torch.zeros(num_out, num_in, dtype=torch.bfloat16, device="cuda")
    weight[-1] = 1.0
    x = torch.ones(8_000, num_in, dtype=torch.bfloat16, device="cuda")
    y = multiply(x, weight)
    assert (y[:, -1] == num_in).all()
    assert not y[:, :-1].any()
