"""Queries, keys and values of few rows against the product and the write, one after the other."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from kernels.gpu.rotary_kv_write import FP8
from kernels.gpu.skinny_linear import NARROW, WIDE, Tiles
from kernels.gpu.skinny_qkv import skinny_qkv, skinny_qkv_reference
from kernels.head_layout import HeadLayout
from tests.kernels.gpu.compiled import compile_for_sm90
from tests.kernels.gpu.test_rotary_kv_write import BLOCK_SIZE, make_round
from tests.kernels.gpu.test_skinny_linear import assert_close, partial_squares, randn

NUM_IN, EPS = 200, 1e-3
Op = Callable[..., Tensor]


def run(
    op: Op, num_rows: int, layout: HeadLayout, device: str, *, fp8: bool = False, bias: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Turned queries, and both halves of the cache, of the first rows of a round of 16."""
    x = randn(16, NUM_IN, device=device)[:num_rows]
    num_out = layout.num_all * layout.head_dim
    weight = randn(num_out, NUM_IN, device=device, seed=1) / NUM_IN**0.5
    cache_dtype = FP8 if fp8 else x.dtype
    torch.manual_seed(0)
    buffers = make_round(16, layout, device, dtype=x.dtype, cache_dtype=cache_dtype)
    qkv = op(
        x,
        weight,
        buffers.cos_sin,
        buffers.positions[:num_rows],
        buffers.slots[:num_rows],
        buffers.keys,
        buffers.values,
        layout,
        bias=randn(num_out, device=device, seed=2) if bias else None,
        squares=partial_squares(x, 3),
        eps=EPS,
    )
    return qkv[:, : layout.num_heads * layout.head_dim], buffers.keys, buffers.values


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("num_rows", [1, 5, 16])
@pytest.mark.parametrize(("heads", "head_dim"), [((6, 2), 32), ((1, 1), 96), ((8, 2), 64)])
def test_it_is_the_product_turned_and_written(
    *, heads: tuple[int, int], head_dim: int, num_rows: int, bias: bool, device: str
) -> None:
    """Heads of one tile and of several; cells of nobody stay as they were."""
    layout = HeadLayout(*heads, head_dim)
    found = run(skinny_qkv, num_rows, layout, device, bias=bias)
    expected = run(skinny_qkv_reference, num_rows, layout, device, bias=bias)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.isnan(), other.isnan())
        assert_close(one.nan_to_num(), other.nan_to_num())


def test_a_cache_of_eight_bits_holds_the_same_numbers(device: str) -> None:
    """Within a step of e4m3 where the product's last bit differs."""
    layout = HeadLayout(6, 2, 32)
    found = run(skinny_qkv, 5, layout, device, fp8=True)
    expected = run(skinny_qkv_reference, 5, layout, device, fp8=True)
    for one, other in zip(found[1:], expected[1:], strict=True):
        steps = one.view(torch.uint8).int() - other.view(torch.uint8).int()
        assert (steps.abs() <= 1).all()
        assert (steps == 0).float().mean() > 0.98


def test_a_row_does_not_depend_on_the_others(device: str) -> None:
    """Its queries, bit for bit alone and among others."""
    layout = HeadLayout(6, 2, 32)
    together = run(skinny_qkv, 16, layout, device)[0]
    alone = run(skinny_qkv, 1, layout, device)[0]
    assert torch.equal(together[0], alone[0])


@pytest.mark.parametrize(
    ("tiles", "layout", "num_in"),
    [(WIDE, HeadLayout(32, 8, 128), 4_096), (NARROW, HeadLayout(32, 8, 64), 2_048)],
)
@pytest.mark.parametrize("cache", ["*bf16", "*fp8e4nv"])
def test_production_tiles_fit_a_hopper(
    tiles: Tiles, layout: HeadLayout, num_in: int, cache: str
) -> None:
    """No register is spilled, whatever the cache."""
    constexprs = {
        "num_heads": layout.num_heads,
        "num_kv_heads": layout.num_kv_heads,
        "head_dim": layout.head_dim,
        "num_in": num_in,
        "num_parts": 256,
        "block_size": BLOCK_SIZE,
        "block_n": tiles.block_n,
        "block_t": 16,
        "block_k": tiles.block_k,
        "is_interpreted": False,
        "is_dependent": True,
    }
    used = compile_for_sm90(
        "kernels.gpu.skinny_qkv",
        "_skinny_qkv_kernel",
        dict.fromkeys(("x_ptr", "weight_ptr", "bias_ptr", "qkv_ptr"), "*bf16")
        | dict.fromkeys(("squares_ptr", "cos_sin_ptr"), "*fp32")
        | dict.fromkeys(("positions_ptr", "slots_ptr"), "*i32")
        | dict.fromkeys(("keys_ptr", "values_ptr"), cache)
        | {"num_rows": "i32", "eps": "fp32"}
        | dict.fromkeys(constexprs, "constexpr"),
        constexprs,
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
    )
    assert used.spill_bytes == 0
    assert used.waits_first
    assert used.shared_bytes <= 227 * 1024 // 2  # two programs on a multiprocessor
