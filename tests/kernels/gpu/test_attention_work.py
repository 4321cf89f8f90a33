"""The device's list of work against the one that plain Python makes."""

import pytest
import torch
from torch import Tensor

from kernels.gpu.attention_work import (
    ALWAYS_CUT,
    CHUNK_LEN,
    MAX_SEQUENCES,
    SEGMENT_CHUNKS,
    AttentionBatch,
    AttentionWork,
    attention_work_reference,
    max_items,
    plan_attention_work,
)
from kernels.head_layout import HeadLayout
from tests.kernels.gpu.compiled import compile_for_sm90

GUARD = -77
SEGMENT_LEN = SEGMENT_CHUNKS.value * CHUNK_LEN
ROUNDS = {
    "one-decode": [(1, 1)],
    "edges-of-a-chunk": [
        (1, CHUNK_LEN - 1),
        (1, CHUNK_LEN),
        (1, CHUNK_LEN + 1),
        (5, CHUNK_LEN),
        (5, CHUNK_LEN + 2),
        (2, 1009),
    ],
    "prefill": [(63, 63), (501, 1009)],
    "behind-a-context": [(150, 1009), (63, 600)],
    "mixed-with-padding": [(63, 63), (0, 0), (1, 700), (5, 1009), (0, 0), (0, 0)],
    "several-segments": [
        (5, SEGMENT_LEN),
        (1, 2 * SEGMENT_LEN + 700),
        (1, SEGMENT_LEN + 5),
        (2, 130),
    ],
    "nobody": [(0, 0), (0, 0)],
}


def make_batch(lens: list[tuple[int, int]], num_rows: int, device: str) -> AttentionBatch:
    """(rows, context) of each sequence, padded to so many rows; without tables."""
    starts = torch.tensor([0] + [rows for rows, _ in lens], dtype=torch.int32).cumsum(0)
    return AttentionBatch(
        query_starts=starts.to(device, torch.int32),
        context_lens=torch.tensor([context for _, context in lens]).to(device, torch.int32),
        block_tables=torch.zeros(len(lens), 1, dtype=torch.int32, device=device),
        positions=torch.zeros(num_rows, dtype=torch.int32, device=device),
    )


def make_work(
    size: int, num_rows: int, group_size: int, device: str, *, num_processors: int = 8
) -> AttentionWork:
    """Buffers of 16-row tiles and two key heads, filled with what a kernel would never write."""
    layout = HeadLayout(num_heads=2 * group_size, num_kv_heads=2, head_dim=32)
    work = AttentionWork.allocate(size, num_rows, layout, 16, device, num_processors=num_processors)
    for part in (work.items, work.num_items):
        part.fill_(GUARD)
    return work


def listed(work: AttentionWork) -> Tensor:
    """The items, and 0 where nothing is written."""
    items = work.items[: int(work.num_items)].cpu().clone()
    assert (items[:, -1] == GUARD).all()
    items[:, -1] = 0
    return items


@pytest.mark.parametrize(
    ("group_size", "num_processors"), [(1, 40), (4, 1), (4, ALWAYS_CUT), (7, 40)]
)
@pytest.mark.parametrize("lens", ROUNDS.values(), ids=ROUNDS.keys())
def test_the_list_is_that_of_the_reference(
    lens: list[tuple[int, int]], group_size: int, num_processors: int, device: str
) -> None:
    """Items are equal to the last word and in the same order, whole, cut and mixed."""
    num_rows = sum(rows for rows, _ in lens) + 3
    batch = make_batch(lens, num_rows, device)
    size = max_items(lens, group_size=group_size, block_m=16)
    work = make_work(size, num_rows, group_size, device, num_processors=num_processors)
    plan_attention_work(batch, work)
    expected = attention_work_reference(batch, work)
    torch.testing.assert_close(listed(work), expected, rtol=0, atol=0)
    assert len(expected) <= size


def test_one_kernel_lists_what_comes(device: str) -> None:
    """The same buffers hold another round, with nothing of the last one left."""
    work = make_work(64, 40, 4, device)
    for lens in ([(33, 600), (5, 700)], [(1, 300), (0, 0)]):
        batch = make_batch(lens, 40, device)
        plan_attention_work(batch, work)
        expected = attention_work_reference(batch, work)
        torch.testing.assert_close(listed(work), expected, rtol=0, atol=0)


def test_too_much_work_is_not_listed(device: str) -> None:
    """A round that has no place is left out, and nothing is touched but the count."""
    lens = [(1, 600), (5, 700), (1, 10)]
    work = make_work(8, 10, 4, device, num_processors=ALWAYS_CUT)
    plan_attention_work(make_batch(lens, 10, device), work)
    assert work.num_items.item() == 0
    assert (work.items == GUARD).all()


def covered(items: Tensor, sequence: int) -> list[tuple[int, int]]:
    """First chunk and end of a sequence's items, in their order."""
    return [(int(item[3]), int(item[4])) for item in items if item[0] == sequence]


def test_a_long_tile_among_short_ones_is_cut(device: str) -> None:
    """Alone it would keep one processor busy after all others are done."""
    lens = [(1, SEGMENT_LEN)] + [(1, CHUNK_LEN + 44)] * 7
    work = make_work(64, 8, 4, device)
    plan_attention_work(make_batch(lens, 8, device), work)
    items = listed(work)
    assert covered(items, 0) == [(chunk, chunk + 1) for chunk in range(SEGMENT_CHUNKS.value)]
    assert all(covered(items, sequence) == [(0, 2)] for sequence in range(1, 8))


def test_long_items_come_first(device: str) -> None:
    """Whole segments, then rests and chunks, then what is less than half a chunk."""
    lens = [(1, 10), (1, SEGMENT_LEN + 5), (1, 900), (1, SEGMENT_LEN), (1, 1200)]
    work = make_work(64, 5, 4, device, num_processors=1)
    plan_attention_work(make_batch(lens, 5, device), work)
    assert listed(work)[:, 0].tolist() == [1, 3, 4, 2, 1, 0]


def test_sizing_counts_tiles_times_chunks() -> None:
    """Two tiles of 16 rows / 4 heads over three chunks, and one over one."""
    assert (
        max_items([(5, 2 * CHUNK_LEN + 1), (1, CHUNK_LEN)], group_size=4, block_m=16) == 2 * 3 + 1
    )


def test_hopper_holds_it_without_spills() -> None:
    """For as many sequences as there can be."""
    names = ["query_starts", "context_lens", "items", "num_items", "rows"]
    constexprs = {
        "max_sequences": MAX_SEQUENCES, "block_q": 4, "chunk_len": CHUNK_LEN, "num_kv_heads": 8,
        "num_processors": 132, "group_size": 4, "merges_apart": True,
    }  # fmt: skip
    signature = dict.fromkeys([f"{name}_ptr" for name in names], "*i32")
    signature |= {"max_items": "i32"}
    resources = compile_for_sm90(
        "kernels.gpu.attention_work",
        "_attention_work_kernel",
        signature | dict.fromkeys(constexprs, "constexpr"),
        constexprs,
        num_warps=4,
        num_stages=3,
    )
    assert resources.spill_bytes == 0
