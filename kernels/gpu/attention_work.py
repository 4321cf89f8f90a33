"""What attention has to do in a round, listed once on the device for all layers.

The rows of a sequence are cut in tiles of BLOCK_Q = block_m // G rows, so that a tile and its G
query heads a key head fill the block_m rows of a matrix product. Its context is cut at absolute
positions: in chunks, and SEGMENT_CHUNKS of these make a segment. An item is one tile against a
whole segment, or, where so few would leave the card idle, against one chunk of it:

    sequence of 5 rows behind 700 tokens, BLOCK_Q 4, chunks of 320, segments of 1,920

    rows     tokens [0, 320)   [320, 640)   [640, 705)
    0..3     item 0            item 1       item 4          alone: cut in chunks
    4        item 2            item 3       item 5          short rests come last
    0..3     item 0                                         in company: whole segments
    4        item 1

Either way the chunks of a segment are added up in their order, and then the segments in theirs
(`attention_merge`). Where they begin depends on no other sequence. So what a batch decides, whether
a tile is cut, changes no bit. Items are listed from long to short, so that short ones fill gaps.
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

# Five tiles of 64 tokens. Shorter: more partial results to merge than context to read; longer: few
# sequences leave most of the card idle. 16 x 5 rows of 1,024 tokens: 35 us, and 43 with 256 tokens.
CHUNK_LEN = 320
# So many chunks are added up by one program, and segments by another.
SEGMENT_CHUNKS = tl.constexpr(6)
# sequence | first row | rows | first chunk | end of its chunks | cache index of the first row |
# cache index of the sequence's first row in this round (a tree starts there) | its rows |
# place of the tile's first item | chunks of the tile | chunks of an item of the tile
ITEM_WORDS = tl.constexpr(12)
# place of the first part of its tile | parts | its place among the tile's packed rows
ROW_WORDS = tl.constexpr(4)
NUM_LANES = tl.constexpr(32)  # tiles, and items of a tile, listed at once
MAX_SEQUENCES = 1_024  # one program reads the lengths of all
INTERPRETED_PROCESSORS = 8
ALWAYS_CUT = 1 << 30  # so many processors that a share is less than a chunk


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
    max_rows: int  # T of the largest round
    num_processors: int  # to keep busy
    merges_apart: bool  # parts are added up by a launch of its own
    items: Tensor  # [max_items, ITEM_WORDS] int32
    num_items: Tensor  # [1] int32
    rows: Tensor  # [max_rows, ROW_WORDS] int32, written where parts are merged apart
    counters: Tensor  # [2, max_items, num_kv_heads] int32, 0 between launches: parts that are there
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
        num_processors: int | None = None,
        merges_apart: bool = False,
    ) -> Self:
        """Buffers for rounds of up to so many rows and items (`max_items` says how many).

        Args:
            max_items: a round of more is not listed, and its rows stay unwritten.
            max_rows: T of the largest round.
            layout: of the model's heads.
            block_m: 16, 32 or 128; at least G.
            device: where the rounds run.
            chunk_len: tokens, a multiple of a configuration's block_n.
            num_processors: None for those of the device. A tile is cut where one of them would take
                longer for it than for its share of everything.
            merges_apart: cut every tile, and add up its chunks in a launch of its own: faster where
                a round is over before all processors have something to do, and always so for tiles
                that are too large to be added up beside others.
        """
        assert layout.group_size <= block_m
        heads = (max_items, layout.num_kv_heads, block_m)
        integers = torch.zeros(0, dtype=torch.int32, device=device)
        floats = torch.zeros(0, dtype=torch.float32, device=device)
        merges_apart = merges_apart or not holds_two(block_m, layout.head_dim)
        if merges_apart:
            num_processors = ALWAYS_CUT
        return cls(
            layout=layout,
            block_m=block_m,
            chunk_len=chunk_len,
            max_rows=max_rows,
            num_processors=num_processors or _num_processors(torch.device(device)),
            merges_apart=merges_apart,
            items=integers.new_zeros(max_items, ITEM_WORDS.value),
            num_items=integers.new_zeros(1),
            rows=integers.new_zeros(max_rows, ROW_WORDS.value),
            counters=integers.new_zeros(2, max_items, layout.num_kv_heads),
            outputs=floats.new_empty(*heads, layout.head_dim),
            maxima=floats.new_empty(heads),
            sums=floats.new_empty(heads),
        )

    @property
    def block_q(self) -> int:
        """Rows of a tile."""
        return self.block_m // self.layout.group_size


def holds_two(block_m: int, head_dim: int) -> bool:
    """Whether a program has registers for the outputs of a tile twice: a chunk's, and their sum."""
    return block_m < 128 or head_dim <= 128  # noqa: PLR2004  # measured by the assembler


def _num_processors(device: torch.device) -> int:
    if device.type == "cpu":
        return INTERPRETED_PROCESSORS
    return torch.cuda.get_device_properties(device).multi_processor_count


def max_items(
    lens: Iterable[tuple[int, int]], *, group_size: int, block_m: int, chunk_len: int = CHUNK_LEN
) -> int:
    """How many items sequences of at most (rows, context) tokens can need."""
    block_q = block_m // group_size
    return sum(-(-num_rows // block_q) * -(-context // chunk_len) for num_rows, context in lens)


def attention_work_reference(batch: AttentionBatch, work: AttentionWork) -> Tensor:
    """The list, whatever room there is: [num_items, ITEM_WORDS] int32."""
    tiles: list[list[int]] = []  # words 0, 1, 2, 5, 6, 7 of an item
    starts, lens = batch.query_starts.tolist(), batch.context_lens.tolist()
    for sequence in sorted(range(len(lens)), key=lambda sequence: -lens[sequence]):
        first, end = starts[sequence], starts[sequence + 1]
        base = lens[sequence] - (end - first)  # tokens before this round's
        for row in range(first, end, work.block_q):
            num_rows = min(work.block_q, end - row)
            tiles.append([sequence, row, num_rows, base + row - first, base, end - first])
    total = sum(tile[2] + tile[3] for tile in tiles)
    share = total * work.layout.num_kv_heads // work.num_processors
    items: list[tuple[int, list[int]]] = []
    chunk_len, segment = work.chunk_len, SEGMENT_CHUNKS.value
    for tile in tiles:
        num_tokens, place = tile[2] + tile[3], len(items)
        is_cut = min(num_tokens, segment * chunk_len) > max(share, chunk_len)
        step, num_chunks = 1 if is_cut else segment, -(-num_tokens // chunk_len)
        for chunk in range(0, num_chunks, step):
            item_len = min(num_tokens - chunk * chunk_len, step * chunk_len)
            order = 2 if is_cut else int(item_len < segment * chunk_len)
            order = 3 if 2 * item_len < chunk_len else order
            words = [*tile[:3], chunk, min(chunk + step, num_chunks), *tile[3:]]
            items.append((order, [*words, place, num_chunks, step]))
    listed = [[*words, 0] for _, words in sorted(items, key=lambda item: item[0])]
    return torch.tensor(listed, dtype=torch.int32).reshape(-1, ITEM_WORDS.value)


@triton.jit  # type: ignore[untyped-decorator]
def _tile_lens(
    tiles: tl.tensor, num_rows: tl.tensor, context_lens: tl.tensor, block_q: tl.constexpr
) -> tl.tensor:
    """Tokens up to the last that each tile's last row sees; 0 for tiles without rows."""
    last = context_lens - num_rows + tl.minimum((tiles + 1) * block_q, num_rows)
    return tl.where(tiles * block_q < num_rows, last, 0)


@triton.jit  # type: ignore[untyped-decorator]
def _share(
    num_rows: tl.tensor,
    context_lens: tl.tensor,
    block_q: tl.constexpr,
    num_kv_heads: tl.constexpr,
    num_processors: tl.constexpr,
) -> tl.tensor:
    """Tokens of all tiles and heads of these sequences a processor: the sum of `_tile_lens`."""
    num_tiles = ((num_rows + block_q - 1) // block_q).to(tl.int64)
    lens = num_tiles * (context_lens - num_rows) + num_rows
    lens += block_q * (num_tiles * (num_tiles - 1) // 2)
    return tl.sum(tl.where(num_rows > 0, lens, 0)) * num_kv_heads // num_processors


@triton.jit  # type: ignore[untyped-decorator]
def _count(
    tile_lens: tl.tensor, share: tl.tensor, chunk_len: tl.constexpr
) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    """Whether tiles are cut; their whole segments, their rest, chunks of cut ones, short rests."""
    segment_len = chunk_len * SEGMENT_CHUNKS
    is_cut = tl.minimum(tile_lens, segment_len) > tl.maximum(share, chunk_len)
    unit = tl.where(is_cut, chunk_len, segment_len)
    num_full = tile_lens // unit
    rest = tile_lens - num_full * unit
    is_short = (2 * rest < chunk_len) & (rest > 0)
    num_long = ((rest > 0) & (2 * rest >= chunk_len)).to(tl.int32)
    num_whole = tl.where(is_cut, 0, num_full)
    num_rests = tl.where(is_cut, 0, num_long)
    num_chunks = tl.where(is_cut, num_full + num_long, 0)
    return is_cut, num_whole, num_rests, num_chunks, is_short.to(tl.int32)


@triton.jit(do_not_specialize=["max_items"])  # type: ignore[untyped-decorator]
def _attention_work_kernel(  # noqa: PLR0917  # Triton passes arguments by position
    query_starts_ptr: tl.tensor,  # [S + 1]
    context_lens_ptr: tl.tensor,  # [S]
    items_ptr: tl.tensor,  # [max_items, ITEM_WORDS]
    num_items_ptr: tl.tensor,  # [1]
    rows_ptr: tl.tensor,  # [max_rows, ROW_WORDS]
    max_items: tl.tensor,
    max_sequences: tl.constexpr,  # a power of 2
    block_q: tl.constexpr,
    group_size: tl.constexpr,
    chunk_len: tl.constexpr,
    num_kv_heads: tl.constexpr,
    num_processors: tl.constexpr,
    merges_apart: tl.constexpr,
) -> None:
    sequence = tl.program_id(0)
    others = tl.arange(0, max_sequences)
    is_other = others < tl.num_programs(0)
    starts = tl.load(query_starts_ptr + others, mask=is_other, other=0)
    num_rows = tl.load(query_starts_ptr + others + 1, mask=is_other, other=0) - starts
    lens = tl.load(context_lens_ptr + others, mask=is_other, other=0)
    share = _share(num_rows, lens, block_q, num_kv_heads, num_processors)
    whole, rests = tl.zeros_like(lens), tl.zeros_like(lens)
    chunks, shorts = tl.zeros_like(lens), tl.zeros_like(lens)
    for tile in range((tl.max(num_rows) + block_q - 1) // block_q):
        tile_lens = _tile_lens(tile, num_rows, lens, block_q)
        _, more_whole, more_rests, more_chunks, more_shorts = _count(tile_lens, share, chunk_len)
        whole += more_whole
        rests += more_rests
        chunks += more_chunks
        shorts += more_shorts
    num_items = tl.sum(whole + rests + chunks + shorts)
    is_listed = num_items <= max_items
    if sequence == 0:
        tl.store(num_items_ptr, tl.where(is_listed, num_items, 0))
    context_len = tl.load(context_lens_ptr + sequence)
    is_before = (lens > context_len) | ((lens == context_len) & (others < sequence))
    if is_listed:
        _list_sequence(
            query_starts_ptr, items_ptr, rows_ptr, sequence, context_len, share,
            tl.sum(tl.where(is_before, whole + rests + chunks + shorts, 0)),
            tl.sum(tl.where(is_before, whole, 0)),
            tl.sum(whole + tl.where(is_before, rests, 0)),
            tl.sum(whole + rests + tl.where(is_before, chunks, 0)),
            tl.sum(whole + rests + chunks + tl.where(is_before, shorts, 0)),
            block_q, group_size, chunk_len, merges_apart,
        )  # fmt: skip


@triton.jit  # type: ignore[untyped-decorator]
def _list_sequence(  # noqa: PLR0917  # Triton passes arguments by position
    query_starts_ptr: tl.tensor, items_ptr: tl.tensor, rows_ptr: tl.tensor,
    sequence: tl.tensor, context_len: tl.tensor, share: tl.tensor,
    place: tl.tensor,  # of partial results: tile after tile
    whole: tl.tensor, rests: tl.tensor,  # where the list goes on with items of each length
    chunks: tl.tensor, shorts: tl.tensor,
    block_q: tl.constexpr, group_size: tl.constexpr, chunk_len: tl.constexpr,
    merges_apart: tl.constexpr,
) -> None:  # fmt: skip
    """Write the items of one sequence, of NUM_LANES tiles at once."""
    lanes = tl.arange(0, NUM_LANES)
    first_row = tl.load(query_starts_ptr + sequence)
    num_rows = tl.load(query_starts_ptr + sequence + 1) - first_row
    base = context_len - num_rows
    for first_tile in range(0, (num_rows + block_q - 1) // block_q, NUM_LANES):
        rows = (first_tile + lanes) * block_q
        tile_lens = _tile_lens(first_tile + lanes, num_rows, context_len, block_q)
        is_cut, num_whole, num_rests, num_chunks, num_shorts = _count(tile_lens, share, chunk_len)
        num_items = num_whole + num_rests + num_chunks + num_shorts
        places = place + tl.cumsum(num_items) - num_items
        wholes = whole + tl.cumsum(num_whole) - num_whole
        long_rests = rests + tl.cumsum(num_rests) - num_rests
        first_chunks = chunks + tl.cumsum(num_chunks) - num_chunks
        short_rests = shorts + tl.cumsum(num_shorts) - num_shorts
        steps = tl.where(is_cut, 1, SEGMENT_CHUNKS)[:, None]
        tile_chunks = ((tile_lens + chunk_len - 1) // chunk_len)[:, None]
        if merges_apart:
            _list_rows(
                rows_ptr, first_row + rows, num_rows - rows, places, num_items, block_q, group_size
            )
        for first_item in range(0, tl.max(num_items), NUM_LANES):
            items = (first_item + lanes)[None, :]
            mask = items < num_items[:, None]
            item_lens = tl.minimum(
                tile_lens[:, None] - items * steps * chunk_len, steps * chunk_len
            )
            is_whole = item_lens == chunk_len * SEGMENT_CHUNKS
            order = tl.where(is_whole, wholes[:, None] + items, long_rests[:, None])
            order = tl.where(is_cut[:, None], first_chunks[:, None] + items, order)
            order = tl.where(2 * item_lens < chunk_len, short_rests[:, None], order)
            ptrs = items_ptr + order * ITEM_WORDS
            tl.store(ptrs, sequence, mask=mask)
            tl.store(ptrs + 1, (first_row + rows)[:, None], mask=mask)
            tl.store(ptrs + 2, tl.minimum(block_q, num_rows - rows)[:, None], mask=mask)
            tl.store(ptrs + 3, items * steps, mask=mask)
            tl.store(ptrs + 4, tl.minimum((items + 1) * steps, tile_chunks), mask=mask)
            tl.store(ptrs + 5, (base + rows)[:, None], mask=mask)
            tl.store(ptrs + 6, base, mask=mask)
            tl.store(ptrs + 7, num_rows, mask=mask)
            tl.store(ptrs + 8, places[:, None], mask=mask)
            tl.store(ptrs + 9, tile_chunks, mask=mask)
            tl.store(ptrs + 10, steps, mask=mask)
        place += tl.sum(num_items)
        whole += tl.sum(num_whole)
        rests += tl.sum(num_rests)
        chunks += tl.sum(num_chunks)
        shorts += tl.sum(num_shorts)


@triton.jit  # type: ignore[untyped-decorator]
def _list_rows(  # noqa: PLR0917  # Triton passes arguments by position
    rows_ptr: tl.tensor,
    tile_rows: tl.tensor,  # [tiles], the first of each
    num_left: tl.tensor,  # [tiles], rows of the sequence from there on
    places: tl.tensor,  # [tiles], of the parts
    num_parts: tl.tensor,  # [tiles]
    block_q: tl.constexpr,
    group_size: tl.constexpr,
) -> None:
    """Tell each row of some tiles where its parts are."""
    own = tl.arange(0, triton.next_power_of_2(block_q))[None, :]
    mask = (own < block_q) & (own < num_left[:, None])
    ptrs = rows_ptr + (tile_rows[:, None] + own) * ROW_WORDS
    tl.store(ptrs, places[:, None], mask=mask)
    tl.store(ptrs + 1, num_parts[:, None], mask=mask)
    tl.store(ptrs + 2, own * group_size, mask=mask)


def plan_attention_work(batch: AttentionBatch, work: AttentionWork) -> None:
    """List the items of a round, before the first layer, without a host sync.

    Args:
        batch: query_starts and context_lens are read; S from 1 to MAX_SEQUENCES.
        work: items and num_items are overwritten.
    """
    num_sequences = len(batch.context_lens)
    assert 0 < num_sequences <= MAX_SEQUENCES
    assert batch.query_starts.shape == (num_sequences + 1,)
    assert batch.query_starts.dtype == batch.context_lens.dtype == torch.int32
    _attention_work_kernel[(num_sequences,)](
        batch.query_starts,
        batch.context_lens,
        work.items,
        work.num_items,
        work.rows,
        len(work.items),
        max_sequences=triton.next_power_of_2(num_sequences),
        block_q=work.block_q,
        group_size=work.layout.group_size,
        chunk_len=work.chunk_len,
        num_kv_heads=work.layout.num_kv_heads,
        num_processors=work.num_processors,
        merges_apart=work.merges_apart,
        num_warps=4,
    )
