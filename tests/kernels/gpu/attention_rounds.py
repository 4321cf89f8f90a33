"""Rounds for the tests of attention: random rows, and NaN wherever in the cache nobody looks."""

import math
import random
from dataclasses import dataclass
from typing import TypedDict, Unpack

import torch
from torch import Tensor

from kernels.gpu.attention_work import (
    CHUNK_LEN,
    AttentionBatch,
    AttentionWork,
    max_items,
    plan_attention_work,
)
from kernels.gpu.verify_attention import Config, verify_attention, verify_attention_reference
from kernels.head_layout import HeadLayout

Lens = list[tuple[int, int]]  # (rows, context) of each sequence
SPARE_BLOCKS = 5


class Options(TypedDict, total=False):
    """What both ways of attending take."""

    window: int | None
    soft_cap: float | None
    tree_bits: Tensor | None


class KernelOptions(Options, total=False):
    """What the kernels take as well."""

    num_programs: int | None
    config: Config | None


@dataclass(frozen=True)
class Round:
    """What one attention call reads."""

    lens: Lens
    layout: HeadLayout
    qkv: Tensor
    keys: Tensor
    values: Tensor
    batch: AttentionBatch

    @property
    def scale(self) -> float:
        """As models have it."""
        return 1 / math.sqrt(self.layout.head_dim)


def make_round(
    lens: Lens,
    *,
    device: str,
    group_size: int = 4,
    num_kv_heads: int = 1,
    head_dim: int = 32,
    block_size: int = 16,
    dtype: torch.dtype | None = None,
    tables: list[list[int]] | None = None,
    seed: int = 0,
) -> Round:
    """Random queries, keys and values; shuffled blocks unless `tables` names them.

    The dtype is that of production where it can be: the interpreter computes in float32 anyway.
    Keys and values of a place in the cache depend on the seed and the block alone.
    """
    layout = HeadLayout(group_size * num_kv_heads, num_kv_heads, head_dim)
    counts = [-(-context // block_size) for _, context in lens]
    num_blocks = sum(counts) + SPARE_BLOCKS if tables is None else max(map(max, tables)) + 1
    if tables is None:
        ids = random.Random(seed).sample(range(num_blocks), num_blocks)
        tables = [[ids.pop() for _ in range(count)] for count in counts]
    generator = torch.Generator().manual_seed(seed)
    shape = (2, num_blocks, num_kv_heads, block_size, head_dim)
    cache = torch.full(shape, float("nan"))
    for (_, context), table in zip(lens, tables, strict=True):
        for index, block_id in enumerate(table):
            used = min(block_size, context - index * block_size)
            if cache[0, block_id, 0, used - 1].isnan().any():
                cache[:, block_id, :, :used] = torch.randn(
                    2, num_kv_heads, used, head_dim, generator=generator
                )
    num_rows = sum(rows for rows, _ in lens)
    qkv = torch.randn(num_rows, layout.num_all * head_dim, generator=generator)
    qkv.view(num_rows, layout.num_all, head_dim)[:, layout.num_heads :] = float("nan")
    dtype = dtype or (torch.float32 if device == "cpu" else torch.bfloat16)
    parts = [part.to(device, dtype) for part in (qkv, *cache)]
    return Round(lens, layout, parts[0], parts[1], parts[2], make_batch(lens, tables, device))


def make_batch(lens: Lens, tables: list[list[int]], device: str) -> AttentionBatch:
    """Chains: the rows of a sequence are its last tokens."""
    width = max(1, *map(len, tables)) if tables else 1
    starts = [0]
    for num_rows, _ in lens:
        starts.append(starts[-1] + num_rows)
    parts = (
        starts,
        [context for _, context in lens],
        [table + [-1] * (width - len(table)) for table in tables],
        [position for rows, context in lens for position in range(context - rows, context)],
    )
    return AttentionBatch(*(torch.tensor(part, dtype=torch.int32, device=device) for part in parts))


def make_work(
    attention: Round,
    lens: Lens,
    *,
    block_m: int = 16,
    chunk_len: int = CHUNK_LEN,
    num_processors: int | None = None,
    merges_apart: bool = False,
) -> AttentionWork:
    """Buffers full of NaN for rounds of at most so many rows and tokens a sequence."""
    layout = attention.layout
    size = max_items(lens, group_size=layout.group_size, block_m=block_m, chunk_len=chunk_len)
    num_rows, device = len(attention.qkv), attention.qkv.device
    work = AttentionWork.allocate(
        size, num_rows, layout, block_m, device,
        chunk_len=chunk_len, num_processors=num_processors, merges_apart=merges_apart,
    )  # fmt: skip
    work.rows.fill_(-77)
    for part in (work.outputs, work.maxima, work.sums):
        part.fill_(float("nan"))
    return work


def attend_into(
    attention: Round,
    work: AttentionWork,
    out: Tensor,
    **options: Unpack[KernelOptions],
) -> None:
    """List the work of a round, and do it."""
    plan_attention_work(attention.batch, work)
    verify_attention(
        attention.qkv, attention.keys, attention.values, attention.batch, work, attention.layout,
        scale=attention.scale, out=out, **options,
    )  # fmt: skip


def attend(
    attention: Round,
    *,
    block_m: int = 16,
    chunk_len: int = CHUNK_LEN,
    num_processors: int | None = None,
    merges_apart: bool = False,
    **options: Unpack[KernelOptions],
) -> Tensor:
    """What the kernels make of a round, in buffers full of NaN, with no part left to be merged."""
    work = make_work(
        attention, attention.lens,
        block_m=block_m, chunk_len=chunk_len, num_processors=num_processors,
        merges_apart=merges_apart,
    )  # fmt: skip
    out = poisoned(attention)
    attend_into(attention, work, out, **options)
    assert not work.counters.any()
    return out


def attend_reference(attention: Round, **options: Unpack[Options]) -> Tensor:
    """What the formula makes of it."""
    out = poisoned(attention)
    verify_attention_reference(
        attention.qkv, attention.keys, attention.values, attention.batch, attention.layout,
        scale=attention.scale, out=out, **options,
    )  # fmt: skip
    return out


def poisoned(attention: Round) -> Tensor:
    """[T, num_heads x D] of NaN."""
    width = attention.layout.num_heads * attention.layout.head_dim
    return attention.qkv.new_full((len(attention.qkv), width), float("nan"))


def assert_close(got: Tensor, expected: Tensor) -> None:
    """Within what the dtype allows, relative to the largest; NaN only where it is expected."""
    tolerance = 1e-5 if got.dtype == torch.float32 else 1e-2
    largest = expected.float().nan_to_num().abs().max().item()
    torch.testing.assert_close(got, expected, rtol=0, atol=tolerance * largest, equal_nan=True)
