"""Rotation, per-head norm and cache write on the GPU against the reference."""

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from kernels.gpu.rotary_kv_write import (
    FP8,
    NUM_WARPS,
    TILE_SIZE,
    rotary_kv_write,
    rotary_kv_write_reference,
)
from kernels.head_layout import HeadLayout
from tests.kernels.gpu.compiled import compile_for_sm90

EPS = 1e-6
NUM_BLOCKS = 8
BLOCK_SIZE = 16
MAX_POSITIONS = 1009
# Of the largest value: a last bit of float16; two of bfloat16, which the interpreter cuts off
# where the GPU rounds; with the norm, bfloat16 is rounded three times.
TOLERANCES = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2.4e-2}
# Fewer heads than a program turns, more of them with a group of 3, and a single key head.
LAYOUTS = [(1, 1), (6, 2), (21, 1)]


@dataclass
class Round:
    """What the op is called with."""

    qkv: Tensor
    cos_sin: Tensor
    positions: Tensor
    slots: Tensor
    keys: Tensor
    values: Tensor
    layout: HeadLayout
    qk_norm: Tensor | None

    def clone(self) -> "Round":
        """The same contents, elsewhere."""
        return replace(
            self, qkv=self.qkv.clone(), keys=self.keys.clone(), values=self.values.clone()
        )

    def row(self, index: int) -> "Round":
        """One row of it alone."""
        part = slice(index, index + 1)
        return replace(
            self.clone(),
            qkv=self.qkv[part].clone(),
            positions=self.positions[part].clone(),
            slots=self.slots[part].clone(),
        )

    def write(self) -> None:
        """Run the kernel."""
        rotary_kv_write(
            self.qkv, self.cos_sin, self.positions, self.slots, self.keys, self.values,
            self.layout, qk_norm=self.qk_norm, eps=EPS,
        )  # fmt: skip

    def write_as_reference(self) -> None:
        """Run the reference."""
        rotary_kv_write_reference(
            self.qkv, self.cos_sin, self.positions, self.slots, self.keys, self.values,
            self.layout, qk_norm=self.qk_norm, eps=EPS,
        )  # fmt: skip


def make_round(
    num_rows: int,
    layout: HeadLayout,
    device: str,
    *,
    dtype: torch.dtype = torch.float32,
    cache_dtype: torch.dtype | None = None,
    has_norm: bool = False,
) -> Round:
    """Random rows in random slots of a cache that is poisoned with NaN."""
    dim = layout.head_dim
    angles = torch.rand(MAX_POSITIONS, dim // 2) * 6
    cache = torch.full((NUM_BLOCKS, layout.num_kv_heads, BLOCK_SIZE, dim), float("nan"))
    cache = cache.to(cache_dtype or dtype).to(device)
    return Round(
        qkv=torch.randn(num_rows, layout.num_all * dim).to(dtype).to(device),
        cos_sin=torch.stack((angles.cos(), angles.sin()), dim=1).to(device),
        positions=torch.randint(MAX_POSITIONS, (num_rows,), dtype=torch.int32).to(device),
        slots=torch.randperm(NUM_BLOCKS * BLOCK_SIZE)[:num_rows].int().to(device),
        keys=cache,
        values=cache.clone(),
        layout=layout,
        qk_norm=torch.randn(2, dim).to(dtype).to(device) if has_norm else None,
    )


def assert_same(actual: Round, expected: Round, dtype: torch.dtype) -> None:
    """Queries and cache are near, with NaN where nothing was written; the rest is untouched."""
    num_queries = expected.layout.num_heads * expected.layout.head_dim
    for one, other in (
        (actual.qkv[:, :num_queries], expected.qkv[:, :num_queries]),
        (actual.keys, expected.keys),
    ):
        tolerance = TOLERANCES[dtype] * float(other.float().nan_to_num().abs().max())
        torch.testing.assert_close(
            one.float(), other.float(), atol=tolerance, rtol=0, equal_nan=True
        )
    assert torch.equal(actual.qkv[:, num_queries:], expected.qkv[:, num_queries:])
    torch.testing.assert_close(actual.values, expected.values, atol=0, rtol=0, equal_nan=True)


@pytest.mark.parametrize("has_norm", [False, True], ids=["plain", "norm"])
@pytest.mark.parametrize("head_dim", [32, 96, 128, 256])
@pytest.mark.parametrize("heads", LAYOUTS)
def test_rows_equal_the_reference(
    heads: tuple[int, int],
    head_dim: int,
    device: str,
    *,
    has_norm: bool,
) -> None:
    """Queries turn in place, keys and values reach their slots, no other slot is touched."""
    actual = make_round(5, HeadLayout(*heads, head_dim), device, has_norm=has_norm)
    expected = actual.clone()

    actual.write()

    expected.write_as_reference()
    assert_same(actual, expected, torch.float32)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("num_rows", [1, 63])
def test_any_number_of_rows_of_any_dtype(num_rows: int, dtype: torch.dtype, device: str) -> None:
    """Rounded where the reference rounds."""
    layout = HeadLayout(num_heads=4, num_kv_heads=2, head_dim=64)
    actual = make_round(num_rows, layout, device, dtype=dtype, has_norm=True)
    expected = actual.clone()

    actual.write()

    expected.write_as_reference()
    assert_same(actual, expected, dtype)


def test_the_rotation_is_the_complex_product(device: str) -> None:
    """Neighbours are a pair: (a + ib) times (cos + i sin); values do not turn."""
    layout = HeadLayout(num_heads=2, num_kv_heads=1, head_dim=32)
    one = make_round(3, layout, device)
    pairs = torch.view_as_complex(one.qkv.view(3, 4, 16, 2).clone())
    cos, sin = one.cos_sin[one.positions.long()].unbind(dim=1)
    turned = torch.view_as_real(pairs * torch.complex(cos, sin).unsqueeze(1)).flatten(-2)

    one.write()

    blocks, offsets = one.slots.long() // BLOCK_SIZE, one.slots.long() % BLOCK_SIZE
    torch.testing.assert_close(one.qkv.view(3, 4, 32)[:, :2], turned[:, :2])
    torch.testing.assert_close(one.keys[blocks, 0, offsets], turned[:, 2])
    assert torch.equal(one.values[blocks, 0, offsets], one.qkv.view(3, 4, 32)[:, 3])


def test_padding_rows_write_nothing(device: str) -> None:
    """Not even where their position is nonsense, and buffers may be longer than the round."""
    one = make_round(5, HeadLayout(6, 2, 32), device)
    one.slots[2:4] = -1
    one.positions[2:4] = torch.tensor([-(2**31), 2**31 - 1], dtype=torch.int32)
    expected = one.clone()
    one.positions = torch.cat((one.positions, one.positions))
    one.slots = torch.cat((one.slots, one.slots))

    one.write()

    expected.write_as_reference()
    torch.testing.assert_close(one.keys, expected.keys, equal_nan=True)
    torch.testing.assert_close(one.values, expected.values, equal_nan=True)
    assert bool(one.qkv.isfinite().all())
    used = [0, 1, 4]
    torch.testing.assert_close(one.qkv[used], expected.qkv[used])


def test_the_cache_may_be_of_another_dtype(device: str) -> None:
    """What is stored is rounded once, from float32, to the cache's dtype."""
    layout = HeadLayout(6, 2, 32)
    actual = make_round(5, layout, device, cache_dtype=torch.float16)
    expected = actual.clone()

    actual.write()

    expected.write_as_reference()
    assert_same(actual, expected, torch.float16)


def test_a_cache_of_eight_bits_is_rounded_to_nearest(device: str) -> None:
    """Every number of 16 bits as the reference keeps it, bit for bit; NaN stays NaN."""
    one = make_round(16, HeadLayout(1, 16, 256), device, dtype=torch.float16, cache_dtype=FP8)
    codes = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(torch.float16)
    finite = codes.where(codes.isfinite(), float("nan")).view(16, 16 * 256)
    one.qkv[:, -16 * 256 :] = finite.to(device)
    expected = one.clone()

    one.write()

    expected.write_as_reference()
    assert torch.equal(one.values.view(torch.uint8), expected.values.view(torch.uint8))
    blocks, offsets = one.slots.long() // BLOCK_SIZE, one.slots.long() % BLOCK_SIZE
    kept = one.values[blocks, :, offsets].float().flatten(1).cpu()
    assert torch.equal(kept.isnan(), finite.isnan())
    assert kept.nan_to_num().abs().max() == 448
    error = (kept - finite.float()).abs().nan_to_num()[finite.abs() <= 448]
    assert (error <= finite.float().abs()[finite.abs() <= 448] / 16 + 2.0**-10).all()


def test_keys_beyond_eight_bits_saturate(device: str) -> None:
    """After rotation: 10,000 and -10,000 become 448 and -448, never NaN."""
    one = make_round(4, HeadLayout(2, 1, 32), device, cache_dtype=FP8)
    one.qkv.copy_(one.qkv.sign() * 1e4)
    one.cos_sin[:, 0], one.cos_sin[:, 1] = 1.0, 0.0

    one.write()

    blocks, offsets = one.slots.long() // BLOCK_SIZE, one.slots.long() % BLOCK_SIZE
    for cache, heads in ((one.keys, one.qkv[:, 64:96]), (one.values, one.qkv[:, 96:])):
        assert torch.equal(cache[blocks, 0, offsets].float(), heads.sign() * 448)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_turned_keys_reach_a_cache_of_eight_bits(dtype: torch.dtype, device: str) -> None:
    """Within one step of eight bits, where a last bit before the rounding decides."""
    actual = make_round(5, HeadLayout(6, 2, 96), device, dtype=dtype, cache_dtype=FP8)
    expected = actual.clone()

    actual.write()

    expected.write_as_reference()
    assert torch.equal(actual.values.view(torch.uint8), expected.values.view(torch.uint8))
    steps = actual.keys.view(torch.uint8).int() - expected.keys.view(torch.uint8).int()
    assert (steps.abs() <= 1).all()
    assert (steps == 0).float().mean() > 0.99


def test_a_row_has_the_same_bits_in_any_batch(device: str) -> None:
    """Alone, among others, and beside rows that are no numbers."""
    together = make_round(63, HeadLayout(6, 2, 96), device, has_norm=True)
    together.qkv[7] = float("nan")
    alone = [together.row(row) for row in (0, 31, 62)]

    for one in (together, *alone):
        one.write()

    for row, one in zip((0, 31, 62), alone, strict=True):
        block, offset = divmod(int(one.slots[0]), BLOCK_SIZE)
        assert torch.equal(one.qkv[0], together.qkv[row])
        assert torch.equal(one.keys[block, :, offset], together.keys[block, :, offset])
        assert torch.equal(one.values[block, :, offset], together.values[block, :, offset])


@pytest.mark.gpu
def test_slots_beyond_2_to_the_31_elements_are_reached() -> None:
    """Offsets into the cache are 64 bits wide."""
    layout = HeadLayout(num_heads=1, num_kv_heads=8, head_dim=128)
    num_blocks = 2**31 // (8 * BLOCK_SIZE * 128) + 2
    one = make_round(1, layout, "cuda", dtype=torch.bfloat16)
    shape = (num_blocks, 8, BLOCK_SIZE, 128)
    one.keys, one.values = torch.zeros(2, *shape, dtype=torch.bfloat16, device="cuda").unbind()
    one.slots[0] = num_blocks * BLOCK_SIZE - 1

    one.write()

    assert torch.equal(one.values[-1, :, -1], one.qkv.view(-1, 128)[9:])
    assert bool(one.keys[-1, :, -1].ne(0).any(dim=1).all())
    assert int(one.keys[:, 0, 0, 0].ne(0).sum()) == 0


@pytest.mark.parametrize(
    ("head_dim", "norm", "cache"),
    [
        (128, "*bf16", "*bf16"),
        (128, "constexpr", "*bf16"),
        (96, "*bf16", "*fp8e4nv"),
        (128, "constexpr", "*fp8e4nv"),
        (256, "*bf16", "*bf16"),
    ],
)
def test_the_production_configuration_fits_a_gpu(head_dim: int, norm: str, cache: str) -> None:
    """Without a spill; 32 heads over 8."""
    constexprs = {
        "num_heads": 32,
        "num_kv_heads": 8,
        "head_dim": head_dim,
        "block_size": 16,
        "tile_heads": TILE_SIZE // (256 if head_dim > 128 else 128),
        "is_dependent": True,
    }
    resources = compile_for_sm90(
        "kernels.gpu.rotary_kv_write",
        "_rotary_kv_write_kernel",
        {
            "qkv_ptr": "*bf16",
            "cos_sin_ptr": "*fp32",
            "positions_ptr": "*i32",
            "slots_ptr": "*i32",
            "keys_ptr": cache,
            "values_ptr": cache,
            "qk_norm_ptr": norm,
            "eps": "fp32",
        }
        | dict.fromkeys(constexprs, "constexpr"),
        constexprs | ({"qk_norm_ptr": None} if norm == "constexpr" else {}),
        num_warps=NUM_WARPS,
        num_stages=1,
    )
    assert resources.spill_bytes == 0
    assert resources.waits_first
