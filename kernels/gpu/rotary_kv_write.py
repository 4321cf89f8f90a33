"""Rotary positions on queries and keys, and keys and values into the paged cache, in one launch.

A pair (a, b) of a head at position p becomes (a cos - b sin, a sin + b cos), with the angle p f of
the pair's frequency f. Where the model has it (Qwen3), every query and key head is normalised
first: x / sqrt(mean(x^2) + eps) * w, rounded as in kernels/gpu/rms_norm.py. The rotation is float32
and rounded once, to the dtype of the row or of the cache. A cache may be of 8 bits (e4m3: 4 of
exponent, 3 of fraction, up to 448): what is beyond its range becomes the end of it.

A program turns a few heads of one row, and how many depends on the head size alone: a row has the
same bits in any batch.

Source: Su et al. 2021, arXiv:2104.09864; e4m3: Micikevicius et al. 2022, arXiv:2209.05433.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu.dependent_launch import dependent_launch, let_next_start, wait_for_launched
from kernels.gpu.rms_norm import rms_norm_reference
from kernels.head_layout import HeadLayout

# One 16-byte load of bf16 a thread. A row of 48 heads x 128 is 6 programs: a single row spreads
# over several cores, and 512 rows are about one wave of them.
TILE_SIZE = 1024
NUM_WARPS = 4
ALIGNMENT_BYTES = 16
FP8 = torch.float8_e4m3fn
FP8_MAX = 448.0
# The bits of 448.0 and of 2 ** -6, the first number below which there are no exponents any more.
FP8_MAX_BITS, FP8_NORMAL_BITS = tl.constexpr(0x43E00000), tl.constexpr(0x3C800000)


def rotary_kv_write_reference(  # noqa: PLR0917  # as the launcher
    qkv: Tensor,
    cos_sin: Tensor,
    positions: Tensor,
    slots: Tensor,
    keys: Tensor,
    values: Tensor,
    layout: HeadLayout,
    *,
    qk_norm: Tensor | None,
    eps: float,
) -> None:
    """Do what `rotary_kv_write` does, for the rows that have a slot."""
    rows = (slots >= 0).nonzero().squeeze(1)
    heads = qkv.view(-1, layout.num_all, layout.head_dim)
    q = heads[rows, : layout.num_heads]
    k = heads[rows, layout.num_heads : layout.num_rotated]
    if qk_norm is not None:
        q, k = rms_norm_reference(q, qk_norm[0], eps), rms_norm_reference(k, qk_norm[1], eps)
    turns = torch.complex(*cos_sin[positions[rows]].unbind(dim=1)).unsqueeze(1)
    heads[rows, : layout.num_heads] = _turned(q, turns).to(qkv.dtype)
    block_size = keys.shape[2]
    blocks, offsets = slots[rows].long() // block_size, slots[rows].long() % block_size
    keys[blocks, :, offsets] = cached(_turned(k, turns), keys.dtype)
    values[blocks, :, offsets] = cached(heads[rows, layout.num_rotated :], values.dtype)


def _turned(heads: Tensor, turns: Tensor) -> Tensor:
    """[T, heads, D] times [T, 1, D / 2] complex64, neighbours taken as one number."""
    pairs = torch.view_as_complex(heads.float().view(*heads.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * turns).flatten(-2)


def cached(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Numbers as a cache of this dtype keeps them: to nearest, ties to even; 8 bits saturate."""
    return (x.float().clamp(-FP8_MAX, FP8_MAX) if dtype == FP8 else x).to(dtype)


@triton.jit  # type: ignore[untyped-decorator]
def _fp8(x: tl.tensor) -> tl.tensor:
    """Float32 to e4m3: to nearest, ties to even, saturating; NaN stays NaN.

    In integers, because the interpreter's own conversion loses ties and small numbers.
    """
    bits = x.to(tl.int32, bitcast=True)
    magnitude = tl.minimum(bits & 0x7FFFFFFF, FP8_MAX_BITS)
    # 20 of 23 bits of fraction go, and the exponent's bias is 7 instead of 127.
    code = ((magnitude + 0x7FFFF + ((magnitude >> 20) & 1)) >> 20) - (120 << 3)
    # There steps are 2 ** -9, as those of float32 from 2 ** 14 on.
    steps = (magnitude.to(tl.float32, bitcast=True) + 16384.0).to(tl.int32, bitcast=True)
    steps -= 0x46800000
    code = tl.where(magnitude < FP8_NORMAL_BITS, steps, code)
    code = tl.where(x != x, 0x7F, code) | tl.where(bits < 0, 0x80, 0)  # noqa: PLR0124  # NaN
    return code.to(tl.uint8).to(tl.float8e4nv, bitcast=True)


@triton.jit  # type: ignore[untyped-decorator]
def cached_numbers(x: tl.tensor, cache_ptr: tl.tensor) -> tl.tensor:
    """Numbers as that cache keeps them."""
    if cache_ptr.dtype.element_ty == tl.float8e4nv:
        kept = _fp8(x.to(tl.float32))
    else:
        kept = x.to(cache_ptr.dtype.element_ty)
    return kept


@triton.jit  # type: ignore[untyped-decorator]
def _rotary_kv_write_kernel(  # noqa: PLR0917  # kernels take theirs by position
    qkv_ptr: tl.tensor,  # [T, num_heads + 2 x num_kv_heads, head_dim]; queries change in place
    cos_sin_ptr: tl.tensor,  # [max_positions, 2, head_dim / 2] float32
    positions_ptr: tl.tensor,  # [T] int32
    slots_ptr: tl.tensor,  # [T] int32
    keys_ptr: tl.tensor,  # [num_blocks, num_kv_heads, block_size, head_dim]
    values_ptr: tl.tensor,  # the same
    qk_norm_ptr: tl.tensor,  # [2, head_dim] of the dtype of qkv, or None
    eps: float,
    num_heads: tl.constexpr,
    num_kv_heads: tl.constexpr,
    head_dim: tl.constexpr,
    block_size: tl.constexpr,
    tile_heads: tl.constexpr,
    is_dependent: tl.constexpr,
) -> None:
    let_next_start(is_dependent)
    wait_for_launched(is_dependent)
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots_ptr + row).to(tl.int64)
    # The position of a padding row may be anything: it must not be followed.
    position = tl.where(slot < 0, 0, tl.load(positions_ptr + row)).to(tl.int64)

    tile_dim: tl.constexpr = triton.next_power_of_2(head_dim)
    num_rotated: tl.constexpr = num_heads + num_kv_heads
    num_all: tl.constexpr = num_rotated + num_kv_heads
    head = (tl.program_id(1) * tile_heads + tl.arange(0, tile_heads))[:, None]
    column = tl.arange(0, tile_dim)[None, :]
    is_inside = (head < num_all) & (column < head_dim)
    is_rotated = is_inside & (head < num_rotated)
    is_query = is_inside & (head < num_heads)
    places = qkv_ptr + row * (num_all * head_dim) + head * head_dim + column
    plain = tl.load(places, mask=is_inside, other=0.0)

    x = plain.to(tl.float32)
    if qk_norm_ptr is not None:
        weight_row = tl.where(head < num_heads, 0, head_dim)
        weight = tl.load(qk_norm_ptr + weight_row + column, mask=is_rotated, other=0.0)
        scale = tl.rsqrt(tl.sum(x * x, axis=1) / head_dim + eps)[:, None]
        rounded = (x * scale).to(weight.dtype).to(tl.float32)
        x = (rounded * weight.to(tl.float32)).to(weight.dtype).to(tl.float32)

    half: tl.constexpr = head_dim // 2
    pair = tl.arange(0, tile_dim // 2)[None, :]
    angles = cos_sin_ptr + position * head_dim + pair
    is_turned = (head < num_rotated) & (pair < half)
    cos = tl.load(angles, mask=is_turned, other=1.0)
    sin = tl.load(angles + half, mask=is_turned, other=0.0)
    a, b = tl.split(tl.reshape(x, (tile_heads, tile_dim // 2, 2)))
    turned = tl.reshape(tl.join(a * cos - b * sin, a * sin + b * cos), (tile_heads, tile_dim))
    tl.store(places, turned.to(plain.dtype), mask=is_query)

    # Of a key or value head; what other heads make of it is masked.
    kv_head = tl.where(is_rotated, head - num_heads, head - num_rotated)
    cell = ((slot // block_size) * num_kv_heads + kv_head) * block_size + slot % block_size
    cell = cell * head_dim + column
    is_key = is_rotated & (head >= num_heads) & (slot >= 0)
    is_value = is_inside & (head >= num_rotated) & (slot >= 0)
    tl.store(keys_ptr + cell, cached_numbers(turned, keys_ptr), mask=is_key)
    tl.store(values_ptr + cell, cached_numbers(plain, values_ptr), mask=is_value)


def rotary_kv_write(  # noqa: PLR0917  # three buffers of the round, two of the cache
    qkv: Tensor,
    cos_sin: Tensor,
    positions: Tensor,
    slots: Tensor,
    keys: Tensor,
    values: Tensor,
    layout: HeadLayout,
    *,
    qk_norm: Tensor | None,
    eps: float,
) -> None:
    """Turn the queries where they are, and write turned keys and plain values into the cache.

    Args:
        qkv: [T, (queries + keys + values) x D] bf16, float16 or float32, contiguous; its keys and
            values stay as they were.
        cos_sin: [max_positions, 2, D / 2] float32, cosines first.
        positions: int32, at least T long; those of padding rows may be anything.
        slots: int32, at least T long: block_id x block_size + offset; negative for a padding row,
            which writes nothing to the cache, and whose queries are anything finite.
        keys: [num_blocks, num_kv_heads, block_size, D], contiguous: float32, float16, bf16 or e4m3.
        values: the same.
        layout: of the rows; D even, at most 256.
        qk_norm: [2, D] of the dtype of `qkv`, for queries and for keys, in the order of
            neighbouring pairs; None for models without it.
        eps: of that norm.
    """
    num_rows, head_dim = len(qkv), layout.head_dim
    block_size = keys.shape[2]
    assert head_dim % 2 == 0
    assert qkv.shape == (num_rows, layout.num_all * head_dim)
    assert cos_sin.shape[1:] == (2, head_dim // 2)
    assert min(len(positions), len(slots)) >= num_rows
    assert keys.shape == values.shape
    assert keys.shape[1:] == (layout.num_kv_heads, block_size, head_dim)
    assert qk_norm is None or (qk_norm.shape == (2, head_dim) and qk_norm.dtype == qkv.dtype)
    for tensor in (qkv, cos_sin, positions, slots, keys, values):
        assert tensor.is_contiguous()
    assert qk_norm is None or qk_norm.is_contiguous()
    # Triton compiles another program, which sums in another order, for what is not aligned.
    assert qkv.data_ptr() % ALIGNMENT_BYTES == 0
    tile_heads = TILE_SIZE // triton.next_power_of_2(head_dim)
    _rotary_kv_write_kernel[(num_rows, triton.cdiv(layout.num_all, tile_heads))](
        qkv, cos_sin, positions, slots, keys, values, qk_norm, eps,
        num_heads=layout.num_heads,
        num_kv_heads=layout.num_kv_heads,
        head_dim=head_dim,
        block_size=block_size,
        tile_heads=tile_heads,
        num_warps=NUM_WARPS,
        num_stages=1,
        **dependent_launch(qkv),
    )  # fmt: skip
