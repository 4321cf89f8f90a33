"""The device's list of work against the one that plain Python makes."""

import pytest
import torch
from torch import Tensor

from kernels.gpu.attention_work import (
    MAX_SEQUENCES,
    AttentionBatch,
    AttentionWork,
    attention_work_reference,
    max_items,
    plan_attention_work,
)
from kernels.head_layout import HeadLayout
from tests.kernels.gpu.compiled import compile_for_sm90

GUARD = -77
ROUNDS = {
    "one-decode": [(1, 1)],
    "edges-of-a-chunk": [(1, 255), (1, 256), (1, 257), (5, 256), (5, 258), (2, 1009)],
    "prefill": [(63, 63), (1009, 1009)],
    "behind-a-context": [(300, 1009), (63, 600)],
    "mixed-with-padding": [(63, 63), (0, 0), (1, 700), (5, 1009), (0, 0), (0, 0)],
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


def make_work(size: int, num_rows: int, group_size: int, device: str) -> AttentionWork:
    """Buffers of 16-row tiles, the list filled with what a kernel would never write."""
    layout = HeadLayout(num_heads=group_size, num_kv_heads=1, head_dim=32)
    work = AttentionWork.allocate(size, num_rows, layout, 16, device)
    for part in (work.items, work.num_items, work.rows):
        part.fill_(GUARD)
    return work


def listed(work: AttentionWork) -> tuple[Tensor, Tensor]:
    """Items and rows as they came."""
    return work.items[: int(work.num_items)].cpu(), work.rows.cpu()


@pytest.mark.parametrize("group_size", [1, 4, 7])
@pytest.mark.parametrize("lens", ROUNDS.values(), ids=ROUNDS.keys())
def test_the_list_is_that_of_the_reference(
    lens: list[tuple[int, int]], group_size: int, device: str
) -> None:
    """Items, rows and counts are equal to the last word, and rows of nobody are marked."""
    num_rows = sum(rows for rows, _ in lens) + 3
    batch = make_batch(lens, num_rows, device)
    size = max_items(lens, group_size=group_size, block_m=16)
    work = make_work(size, num_rows, group_size, device)
    plan_attention_work(batch, work)
    items, rows = attention_work_reference(batch, block_q=work.block_q, chunk_len=work.chunk_len)
    torch.testing.assert_close(listed(work), (items, rows), rtol=0, atol=0)
    assert len(items) <= size


def test_one_kernel_lists_what_comes(device: str) -> None:
    """The same buffers hold another round, with nothing of the last one left."""
    work = make_work(64, 40, 4, device)
    for lens in ([(33, 600), (5, 700)], [(1, 300), (0, 0)]):
        batch = make_batch(lens, 40, device)
        plan_attention_work(batch, work)
        expected = attention_work_reference(batch, block_q=4, chunk_len=work.chunk_len)
        torch.testing.assert_close(listed(work), expected, rtol=0, atol=0)


def test_too_much_work_stays_in_its_buffers(device: str) -> None:
    """What has no place is left out, and its rows are nobody's; nothing else is touched."""
    size, lens = 5, [(1, 600), (5, 700), (1, 10)]
    batch = make_batch(lens, 10, device)
    work = make_work(size + 20, 10, 4, device)
    items, rows = work.items, work.rows
    small = AttentionWork(
        work.layout, 16, work.chunk_len, items[:size], work.num_items, rows[:8],
        work.outputs, work.maxima, work.sums,
    )  # fmt: skip
    plan_attention_work(batch, small)
    expected, _ = attention_work_reference(batch, block_q=4, chunk_len=work.chunk_len)
    assert work.num_items.item() == size
    torch.testing.assert_close(items[:size].cpu(), expected[:size], rtol=0, atol=0)
    assert (items[size:] == GUARD).all()
    assert rows[:8, 0].tolist() == [0, -1, -1, -1, -1, -1, -1, -1]
    assert (rows[8:] == GUARD).all()


def test_sizing_counts_tiles_times_chunks() -> None:
    """Two tiles of 16 rows / 4 heads over three chunks, and one over one."""
    assert max_items([(5, 513), (1, 256)], group_size=4, block_m=16) == 2 * 3 + 1


def test_hopper_holds_it_without_spills() -> None:
    """For as many sequences as there can be."""
    names = ["query_starts", "context_lens", "items", "num_items", "rows"]
    constexprs = {"max_sequences": MAX_SEQUENCES, "block_q": 4, "chunk_len": 256}
    signature = dict.fromkeys([f"{name}_ptr" for name in names], "*i32")
    signature |= {"max_items": "i32", "max_rows": "i32"}
    resources = compile_for_sm90(
        "kernels.gpu.attention_work",
        "_attention_work_kernel",
        signature | dict.fromkeys(constexprs, "constexpr"),
        constexprs,
        num_warps=4,
        num_stages=3,
    )
    assert resources.spill_bytes == 0
