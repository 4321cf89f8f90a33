"""What attention has to do in a round, listed once on the device for all layers.

The rows of a sequence are cut in tiles of BLOCK_Q = block_m // G rows, so that a tile and its G
query heads a key head fill the block_m rows of a matrix product; its context is cut in chunks of a
fixed number of tokens at absolute positions. An item is one tile against one chunk:

    sequence of 5 rows behind 600 tokens, BLOCK_Q 4, chunks of 256

    rows     tokens [0, 256)   [256, 512)   [512, 605)
    0..3     item 0            item 1       item 2
    4        item 3            item 4       item 5

Where chunks begin depends on no other sequence, and so neither does the order in which a row's
partial results are added up: the list is balanced over programs and independent of the batch.
Source: the tile list of HPC-Ops (vLLM blog, 2026-07-06), with chunks fixed instead of bucketed.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.head_layout import HeadLayout

# Four tiles of 64 tokens. Shorter: more partial results to merge than context to read; longer: a
# lone sequence of 1,024 tokens leaves most of the card idle.
CHUNK_LEN = 256
# sequence | first row | rows | chunk | chunks of the tile | cache index of the first row |
# cache index of the sequence's first row in this round (a tree starts there) | its rows
ITEM_WORDS = tl.constexpr(8)
ROW_WORDS = tl.constexpr(3)  # item of the first chunk | row within the tile | chunks
NUM_LANES = tl.constexpr(32)  # tiles, and chunks, listed at once
WORDS_AT_ONCE = tl.constexpr(1_024)  # of the rows of nobody
MAX_BLOCK_N = 64  # tokens of a tile: a chunk is whole tiles, in any configuration
MAX_SEQUENCES = 1_024  # one program reads the lengths of all


@dataclass(frozen=True, slots=True)
class AttentionBatch:
    """A round's rows and contexts, int32 on the device, padded or not.

    Rows beyond `query_starts[S]` and sequences without rows are padding.
    """

    query_starts: Tensor  # [S + 1], rows query_starts[s] .. query_starts[s + 1] are sequence s's
    context_lens: Tensor  # [S], tokens in the cache once this round's rows are written
    block_tables: Tensor  # [S, max_blocks]
    positions: Tensor  # [T]


@dataclass(frozen=True, slots=True)
class AttentionWork:
    """Device buffers of a round's items and of what they leave to be merged.

    Partial results are not divided by their sum, and hold nothing where an item saw no token.
    """

    layout: HeadLayout
    block_m: int
    chunk_len: int  # tokens
    items: Tensor  # [max_items, ITEM_WORDS] int32
    num_items: Tensor  # [1] int32
    rows: Tensor  # [max_rows, ROW_WORDS] int32, -1: nobody's
    outputs: Tensor  # [max_items, num_kv_heads, block_m, D] float32
    maxima: Tensor  # [max_items, num_kv_heads, block_m] float32, of base 2 logits
    sums: Tensor  # the same, of 2 ** (logit - maximum)

    @classmethod
    def allocate(
        cls,
        max_items: int,
        max_rows: int,
        layout: HeadLayout,
        block_m: int,
        device: torch.device | str,
        *,
        chunk_len: int = CHUNK_LEN,
    ) -> Self:
        """Buffers for rounds of up to so many rows and items (`max_items` says how many).

        Args:
            max_items: whatever goes beyond is left out of the list, and its rows unwritten.
            max_rows: T of the largest round.
            layout: of the model's heads.
            block_m: 16, 32, 64 or 128; at least G.
            device: where the rounds run.
            chunk_len: tokens, a multiple of MAX_BLOCK_N.
        """
        assert layout.group_size <= block_m
        assert chunk_len % MAX_BLOCK_N == 0
        heads = (max_items, layout.num_kv_heads, block_m)
        integers = torch.zeros(0, dtype=torch.int32, device=device)
        floats = torch.zeros(0, dtype=torch.float32, device=device)
        return cls(
            layout=layout,
            block_m=block_m,
            chunk_len=chunk_len,
            items=integers.new_zeros(max_items, ITEM_WORDS.value),
            num_items=integers.new_zeros(1),
            rows=integers.new_full((max_rows, ROW_WORDS.value), -1),
            outputs=floats.new_empty(*heads, layout.head_dim),
            maxima=floats.new_empty(heads),
            sums=floats.new_empty(heads),
        )

    @property
    def block_q(self) -> int:
        """Rows of a tile."""
        return self.block_m // self.layout.group_size


def max_items(
    lens: Iterable[tuple[int, int]], *, group_size: int, block_m: int, chunk_len: int = CHUNK_LEN
) -> int:
    """How many items sequences of at most (rows, context) tokens can need."""
    block_q = block_m // group_size
    return sum(-(-num_rows // block_q) * -(-context // chunk_len) for num_rows, context in lens)


def attention_work_reference(
    batch: AttentionBatch, *, block_q: int, chunk_len: int
) -> tuple[Tensor, Tensor]:
    """The list without a bound: items [num_items, ITEM_WORDS] and rows [T, ROW_WORDS], int32."""
    items: list[list[int]] = []
    rows = [[-1, -1, -1] for _ in batch.positions]
    starts = batch.query_starts.tolist()
    for sequence, context_len in enumerate(batch.context_lens.tolist()):
        first, end = starts[sequence], starts[sequence + 1]
        base = context_len - (end - first)  # tokens before this round's
        for tile_row in range(first, end, block_q):
            num_rows = min(block_q, end - tile_row)
            position = base + tile_row - first
            num_chunks = -(-(position + num_rows) // chunk_len)
            for row in range(num_rows):
                rows[tile_row + row] = [len(items), row, num_chunks]
            items += [
                [sequence, tile_row, num_rows, chunk, num_chunks, position, base, end - first]
                for chunk in range(num_chunks)
            ]
    return (
        torch.tensor(items, dtype=torch.int32).reshape(-1, ITEM_WORDS.value),
        torch.tensor(rows, dtype=torch.int32).reshape(-1, ROW_WORDS.value),
    )


@triton.jit  # type: ignore[untyped-decorator]
def _chunks_of_tiles(
    tiles: tl.tensor,
    num_rows: tl.tensor,
    context_lens: tl.tensor,
    block_q: tl.constexpr,
    chunk_len: tl.constexpr,
) -> tl.tensor:
    """Chunks up to the last token that each tile's last row sees; 0 for tiles without rows."""
    last = context_lens - num_rows + tl.minimum((tiles + 1) * block_q, num_rows)
    return tl.where(tiles * block_q < num_rows, (last + chunk_len - 1) // chunk_len, 0)


@triton.jit  # type: ignore[untyped-decorator]
def _first_item(  # noqa: PLR0917  # Triton passes arguments by position
    query_starts_ptr: tl.tensor,
    context_lens_ptr: tl.tensor,
    sequence: tl.tensor,
    num_sequences: tl.tensor,
    max_sequences: tl.constexpr,
    block_q: tl.constexpr,
    chunk_len: tl.constexpr,
) -> tl.tensor:
    """How many items the sequences before this one have."""
    others = tl.arange(0, max_sequences)
    is_before = (others < sequence) & (others < num_sequences)
    starts = tl.load(query_starts_ptr + others, mask=is_before, other=0)
    num_rows = tl.load(query_starts_ptr + others + 1, mask=is_before, other=0) - starts
    context_lens = tl.load(context_lens_ptr + others, mask=is_before, other=0)
    total = tl.zeros_like(num_rows)
    for tile in range((tl.max(num_rows) + block_q - 1) // block_q):
        total += _chunks_of_tiles(tile, num_rows, context_lens, block_q, chunk_len)
    return tl.sum(total)


@triton.jit(do_not_specialize=["max_items", "max_rows"])  # type: ignore[untyped-decorator]
def _attention_work_kernel(  # noqa: PLR0917  # Triton passes arguments by position
    query_starts_ptr: tl.tensor,  # [S + 1]
    context_lens_ptr: tl.tensor,  # [S]
    items_ptr: tl.tensor,  # [max_items, ITEM_WORDS]
    num_items_ptr: tl.tensor,  # [1]
    rows_ptr: tl.tensor,  # [max_rows, ROW_WORDS]
    max_items: tl.tensor,
    max_rows: tl.tensor,
    max_sequences: tl.constexpr,  # a power of 2
    block_q: tl.constexpr,
    chunk_len: tl.constexpr,
) -> None:
    sequence = tl.program_id(0)
    num_sequences = tl.num_programs(0) - 1
    first_row = tl.load(query_starts_ptr + sequence)
    item = _first_item(
        query_starts_ptr,
        context_lens_ptr,
        sequence,
        num_sequences,
        max_sequences,
        block_q,
        chunk_len,
    )
    lanes = tl.arange(0, NUM_LANES)
    is_sequence = sequence < num_sequences
    end_row = tl.load(query_starts_ptr + sequence + 1, mask=is_sequence, other=0)
    num_rows = tl.where(is_sequence, end_row - first_row, 0)
    context_len = tl.load(context_lens_ptr + sequence, mask=is_sequence, other=0)
    if sequence == num_sequences:  # the rows of the last program are nobody's
        tl.store(num_items_ptr, tl.minimum(item, max_items))
        for start in range(first_row * ROW_WORDS, max_rows * ROW_WORDS, WORDS_AT_ONCE):
            words = start + tl.arange(0, WORDS_AT_ONCE)
            tl.store(rows_ptr + words, -1, mask=words < max_rows * ROW_WORDS)
    base = context_len - num_rows
    for first_tile in range(0, (num_rows + block_q - 1) // block_q, NUM_LANES):
        tiles = first_tile + lanes
        num_chunks = _chunks_of_tiles(tiles, num_rows, context_len, block_q, chunk_len)
        first_items = item + tl.cumsum(num_chunks) - num_chunks
        item += tl.sum(num_chunks)
        is_listed = (num_chunks > 0) & (first_items + num_chunks <= max_items)
        tile_rows = tl.minimum(block_q, num_rows - tiles * block_q)
        _store_rows(
            rows_ptr + (first_row + tiles * block_q) * ROW_WORDS,
            first_items, num_chunks, tile_rows, is_listed, block_q,
        )  # fmt: skip
        for first_chunk in range(0, tl.max(num_chunks), NUM_LANES):
            chunks = (first_chunk + lanes)[None, :]
            places = first_items[:, None] + chunks
            mask = (chunks < num_chunks[:, None]) & (places < max_items)
            place_ptrs = items_ptr + places * ITEM_WORDS
            tl.store(place_ptrs, sequence, mask=mask)
            tl.store(place_ptrs + 1, (first_row + tiles * block_q)[:, None], mask=mask)
            tl.store(place_ptrs + 2, tile_rows[:, None], mask=mask)
            tl.store(place_ptrs + 3, chunks, mask=mask)
            tl.store(place_ptrs + 4, num_chunks[:, None], mask=mask)
            tl.store(place_ptrs + 5, (base + tiles * block_q)[:, None], mask=mask)
            tl.store(place_ptrs + 6, base, mask=mask)
            tl.store(place_ptrs + 7, num_rows, mask=mask)


@triton.jit  # type: ignore[untyped-decorator]
def _store_rows(  # noqa: PLR0917  # Triton passes arguments by position
    tile_ptrs: tl.tensor,  # [NUM_LANES], of a tile's first row
    first_items: tl.tensor,
    num_chunks: tl.tensor,
    tile_rows: tl.tensor,
    is_listed: tl.tensor,
    block_q: tl.constexpr,
) -> None:
    """Say of the rows of some tiles where their partial results are; -1 if they have no place."""
    rows = tl.arange(0, triton.next_power_of_2(block_q))[None, :]
    row_ptrs = tile_ptrs[:, None] + rows * ROW_WORDS
    mask = (rows < block_q) & (rows < tile_rows[:, None])
    tl.store(row_ptrs, tl.where(is_listed, first_items, -1)[:, None], mask=mask)
    tl.store(row_ptrs + 1, tl.where(is_listed[:, None], rows, -1), mask=mask)
    tl.store(row_ptrs + 2, tl.where(is_listed, num_chunks, -1)[:, None], mask=mask)


def plan_attention_work(batch: AttentionBatch, work: AttentionWork) -> None:
    """List the items of a round, before the first layer, without a host sync.

    Args:
        batch: query_starts and context_lens are read; S at most MAX_SEQUENCES.
        work: items, num_items and rows are overwritten, rows up to the end of the buffer.
    """
    num_sequences = len(batch.context_lens)
    assert num_sequences <= MAX_SEQUENCES
    assert batch.query_starts.shape == (num_sequences + 1,)
    assert batch.query_starts.dtype == batch.context_lens.dtype == torch.int32
    _attention_work_kernel[(num_sequences + 1,)](
        batch.query_starts,
        batch.context_lens,
        work.items,
        work.num_items,
        work.rows,
        len(work.items),
        len(work.rows),
        max_sequences=triton.next_power_of_2(num_sequences),
        block_q=work.block_q,
        chunk_len=work.chunk_len,
        num_warps=4,
    )
