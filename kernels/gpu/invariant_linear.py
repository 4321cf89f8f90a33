"""Linear layers whose rows have the same bits in any company: y = x W^T + b.

A library chooses by the number of rows in which order it adds up a product. Here there is one: from
the first column of W to the last, 16 at a time, into one sum of a tensor core. Tiles are chosen by
the number of rows too, but what a tensor core makes of a row does not depend on how many others an
instruction has. That is no promise of the instruction set: the tests hold a GPU to it, for all of
TILES.

Outputs lie along the long side of the instruction (y^T = W x^T): wgmma takes 64 of them at least
and as few as 8 rows, so that few rows cost no more than reading W. A tile may have two parts, for
numbers of rows between powers of 2 (160 = 128 + 32).

Measured on an H200 beside cuBLAS (bf16, W not in the cache, microseconds, cuBLAS / this):

| rows | 4,096 -> 6,144 | 4,096 -> 4,096 | 4,096 -> 28,672 | 14,336 -> 4,096 | 4,096 -> 128,256 |
|---|---|---|---|---|---|
| 1 | 16.8 / 15.8 | 13.6 / 11.6 | 57.6 / 58.0 | 32.7 / 31.2 | 240 / 236 |
| 64 | 16.9 / 16.8 | 12.2 / 12.0 | 62.9 / 62.2 | 36.8 / 33.0 | 277 / 254 |
| 160 | 19.0 / 21.2 | 19.9 / 18.1 | 67.0 / 71.6 | 40.3 / 55.2 | 281 / 292 |
| 320 | 33.4 / 29.1 | 18.3 / 20.5 | 110 / 127 | 53.4 / 62.7 | 455 / 522 |
| 2,048 | 132 / 135 | 87.3 / 89.8 | 605 / 630 | 294 / 298 | 2,833 / 2,936 |

Source: batch-invariant kernels, He 2025, "Defeating Nondeterminism in LLM Inference".
"""

import functools
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  # torch's own name for it
from triton.tools.tensor_descriptor import TensorDescriptor

from kernels.gpu.dependent_launch import dependent_launch, let_next_start, wait_for_launched

ROW_ALIGNMENT = 8  # numbers of 16 bits: rows of 16 bytes are what tiles are copied from


class Tiles(NamedTuple):
    """How the kernel is launched. No choice here changes a bit of what it gives."""

    block_n: int  # outputs of a program
    block_t: int  # rows of a program
    more_t: int  # and as many after them; 0 for none
    block_k: int  # inputs at a time
    num_warps: int
    num_stages: int

    @property
    def num_rows(self) -> int:
        """Of a program."""
        return self.block_t + self.more_t

    @property
    def stage_bytes(self) -> int:
        """Shared memory of one stage, in 16 bits a number."""
        return 2 * self.block_k * (self.block_n + self.num_rows)


_LARGE = Tiles(128, 256, 0, 64, 8, 4)
# By outputs at most, then by rows at most; None for any. Few outputs make few tiles: of up to 4,224
# two rows of tiles with 64 outputs each occupy 132 multiprocessors, of 8,448 those with 128.
TILES: dict[int | None, dict[int | None, Tiles]] = {
    4_224: {
        16: Tiles(64, 16, 0, 256, 4, 5),
        64: Tiles(64, 32, 0, 128, 4, 9),
        128: Tiles(64, 64, 0, 64, 4, 10),
        160: Tiles(64, 64, 16, 64, 4, 6),
        224: Tiles(128, 64, 0, 64, 8, 9),
        256: Tiles(64, 128, 0, 64, 4, 9),
        320: Tiles(64, 128, 32, 64, 4, 7),
        512: Tiles(128, 128, 0, 64, 8, 6),
        None: _LARGE,
    },
    8_448: {
        16: Tiles(64, 16, 0, 256, 4, 5),
        64: Tiles(128, 32, 0, 128, 4, 5),
        128: Tiles(64, 128, 0, 64, 4, 9),
        160: Tiles(64, 128, 32, 64, 4, 7),
        256: Tiles(128, 128, 0, 64, 8, 6),
        320: Tiles(128, 64, 0, 64, 4, 4),
        None: _LARGE,
    },
    None: {
        16: Tiles(128, 16, 0, 256, 4, 3),
        32: Tiles(128, 32, 0, 64, 4, 5),
        64: Tiles(128, 64, 0, 64, 4, 4),
        128: Tiles(128, 128, 0, 64, 4, 3),
        160: Tiles(128, 128, 32, 64, 4, 3),
        256: _LARGE,
        320: Tiles(128, 128, 32, 64, 4, 3),
        384: Tiles(128, 128, 0, 64, 4, 3),
        None: _LARGE,
    },
}
FLOAT32_TILES = Tiles(64, 16, 0, 32, 4, 2)  # without tensor cores


def tiles_of(num_rows: int, num_out: int, dtype: torch.dtype) -> Tiles:
    """What is fast for so many rows and outputs."""
    if dtype == torch.float32:
        return FLOAT32_TILES
    by_rows = next(value for most, value in TILES.items() if most is None or num_out <= most)
    return next(value for most, value in by_rows.items() if most is None or num_rows <= most)


@functools.cache
def _shared_bytes(device: torch.device) -> int:
    """Shared memory that a program may have."""
    if device.type != "cuda":
        return 1 << 30
    properties = torch.cuda.get_device_properties(device)
    return int(properties.shared_memory_per_block_optin)  # type: ignore[attr-defined]


def invariant_linear_reference(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """By definition, in float32; arguments as `invariant_linear`."""
    y = F.linear(x.float(), weight.float(), None if bias is None else bias.float())
    return y.to(x.dtype)


@triton.jit  # type: ignore[untyped-decorator]
def _store(  # noqa: PLR0917  # Triton passes arguments by position
    sums: tl.tensor,  # [block_n, rows] float32
    bias_ptr: tl.tensor,  # [N], or None
    out_ptr: tl.tensor,  # [T, N]
    outputs: tl.tensor,  # [block_n]
    rows: tl.tensor,
    num_rows: tl.tensor,
    num_out: tl.tensor,
) -> None:
    is_output = outputs < num_out
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + outputs, mask=is_output, other=0.0)
        sums += bias.to(tl.float32)[:, None]
    places = out_ptr + rows.to(tl.int64)[None, :] * num_out + outputs[:, None]
    mask = is_output[:, None] & (rows < num_rows)[None, :]
    tl.store(places, sums.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit  # type: ignore[untyped-decorator]
def _add_product(
    weight: tl.tensor,  # [block_n, block_k]
    x: tl.tensor,  # [rows, block_k]
    sums: tl.tensor,  # [block_n, rows] float32
    is_interpreted: tl.constexpr,
) -> tl.tensor:
    if is_interpreted:  # the interpreter multiplies bfloat16 wrongly
        weight, x = weight.to(tl.float32), x.to(tl.float32)
    return tl.dot(weight, tl.trans(x), sums, input_precision="ieee")


@triton.jit(do_not_specialize=["num_rows"])  # type: ignore[untyped-decorator]
def _invariant_linear_kernel(  # noqa: PLR0917
    x_tiles: tl.tensor,  # of x [T, K], zeros beyond it: [block_t, block_k]
    more_tiles: tl.tensor,  # the same: [more_t, block_k], or None
    weight_tiles: tl.tensor,  # of W [N, K]: [block_n, block_k]
    bias_ptr: tl.tensor,  # [N], or None
    out_ptr: tl.tensor,  # [T, N]
    num_rows: tl.tensor,
    num_out: tl.tensor,
    num_in: tl.tensor,
    block_n: tl.constexpr,
    block_t: tl.constexpr,
    more_t: tl.constexpr,
    block_k: tl.constexpr,
    is_interpreted: tl.constexpr,
    is_dependent: tl.constexpr,
) -> None:
    wait_for_launched(is_dependent)
    num_row_tiles = tl.cdiv(num_rows, block_t + more_t)
    # Tiles of the same outputs run side by side, and find their rows of W in the cache.
    first_row = tl.program_id(0) % num_row_tiles * (block_t + more_t)
    first_output = tl.program_id(0) // num_row_tiles * block_n
    sums = tl.zeros([block_n, block_t], tl.float32)
    if more_t:
        more_sums = tl.zeros([block_n, more_t], tl.float32)
    for first in range(0, num_in, block_k):
        weight = weight_tiles.load([first_output, first])
        sums = _add_product(weight, x_tiles.load([first_row, first]), sums, is_interpreted)
        if more_t:
            x = more_tiles.load([first_row + block_t, first])
            more_sums = _add_product(weight, x, more_sums, is_interpreted)
    let_next_start(is_dependent)
    outputs = first_output + tl.arange(0, block_n)
    rows = first_row + tl.arange(0, block_t)
    _store(sums, bias_ptr, out_ptr, outputs, rows, num_rows, num_out)
    if more_t:
        rows = first_row + block_t + tl.arange(0, more_t)
        _store(more_sums, bias_ptr, out_ptr, outputs, rows, num_rows, num_out)


def invariant_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    out: Tensor | None = None,
    tiles: Tiles | None = None,
) -> Tensor:
    """Multiply any number of rows.

    Args:
        x: [T, K] bf16, float16 or float32, contiguous, rows of a multiple of 16 bytes.
        weight: [N, K] of the same dtype, contiguous.
        bias: [N].
        out: [T, N]; allocated if not given.
        tiles: to find better ones.

    Returns:
        `out`. A row of it depends on that row of `x` alone, to the last bit.
    """
    (num_rows, num_in), num_out = x.shape, len(weight)
    out = x.new_empty(num_rows, num_out) if out is None else out
    assert weight.shape[1] == num_in
    assert out.shape == (num_rows, num_out)
    for tensor in (x, weight, out, *(() if bias is None else (bias,))):
        assert tensor.is_contiguous()
        assert tensor.dtype == x.dtype
    if num_rows == 0:
        return out
    tiles = tiles or tiles_of(num_rows, num_out, x.dtype)
    blocks = [[size, tiles.block_k] for size in (tiles.block_t, tiles.more_t, tiles.block_n)]
    num_tiles = triton.cdiv(num_rows, tiles.num_rows) * triton.cdiv(num_out, tiles.block_n)
    _invariant_linear_kernel[(num_tiles,)](
        TensorDescriptor.from_tensor(x, blocks[0]),
        TensorDescriptor.from_tensor(x, blocks[1]) if tiles.more_t else None,
        TensorDescriptor.from_tensor(weight, blocks[2]),
        bias,
        out,
        num_rows,
        num_out,
        num_in,
        block_n=tiles.block_n,
        block_t=tiles.block_t,
        more_t=tiles.more_t,
        block_k=tiles.block_k,
        is_interpreted=not x.is_cuda,
        num_warps=tiles.num_warps,
        num_stages=min(tiles.num_stages, _shared_bytes(x.device) // (tiles.stage_bytes + 64)),
        **dependent_launch(x),
    )
    return out
