"""Merging partial results against the formula."""

import pytest
import torch

from kernels.gpu.attention_merge import attention_merge, attention_merge_reference
from kernels.gpu.attention_work import AttentionWork
from kernels.head_layout import HeadLayout
from tests.kernels.gpu.compiled import compile_for_sm90

LAYOUT = HeadLayout(num_heads=6, num_kv_heads=2, head_dim=96)


def make_partials(num_items: int, rows: list[list[int]], device: str) -> AttentionWork:
    """Random partial results for rows of (first item, row within the tile, chunks)."""
    work = AttentionWork.allocate(num_items, len(rows), LAYOUT, 16, device)
    generator = torch.Generator().manual_seed(0)
    for part in (work.outputs, work.maxima, work.sums):
        part.copy_(torch.rand(part.shape, generator=generator) * 4 + 0.1)
    work.rows.copy_(torch.tensor(rows))
    return work


@pytest.mark.parametrize("num_chunks", [2, 3, 32, 63])
def test_chunks_are_weighted_by_their_maxima(num_chunks: int, device: str) -> None:
    """Fewer and more chunks than are merged at once, for two rows of a tile."""
    work = make_partials(num_chunks + 1, [[1, 0, num_chunks], [1, 4, num_chunks]], device)
    out = torch.full((2, 6 * 96), float("nan"), device=device)
    expected = out.clone()
    attention_merge(work, out)
    attention_merge_reference(work, expected)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)


def test_a_chunk_in_which_nothing_was_seen_counts_nothing(device: str) -> None:
    """Whatever it holds, first, last and in between, the bits are those of the one that counts."""
    work = make_partials(40, [[0, 2, 40]], device)
    for item in set(range(40)) - {17}:
        work.maxima[item] = float("-inf")
        work.outputs[item] = work.sums[item] = float("nan")
    out = torch.full((1, 6 * 96), float("nan"), device=device)
    attention_merge(work, out)
    only = slice(2 * 3, 3 * 3)  # packed rows of row 2, G 3
    alone = work.outputs[17, :, only] / work.sums[17, :, only].unsqueeze(-1)
    # Division is rounded a little differently on a GPU.
    torch.testing.assert_close(out.view(3, 2, 96).transpose(0, 1), alone, rtol=1e-6, atol=0)


def test_rows_of_one_chunk_and_of_nobody_stay(device: str) -> None:
    """They were written directly, or are padding."""
    work = make_partials(4, [[3, 0, 1], [-1, -1, -1], [0, 1, 2]], device)
    out = torch.full((3, 6 * 96), float("nan"), device=device)
    attention_merge(work, out)
    assert out[:2].isnan().all()
    assert out[2].isfinite().all()


def test_hopper_holds_it_without_spills() -> None:
    """At the size of Llama 3 8B."""
    constexprs = {"num_kv_heads": 8, "group_size": 4, "block_m": 32, "head_dim": 128}
    pointers = dict.fromkeys(["outputs_ptr", "maxima_ptr", "sums_ptr"], "*fp32")
    signature = {**pointers, "rows_ptr": "*i32", "out_ptr": "*bf16"}
    resources = compile_for_sm90(
        "kernels.gpu.attention_merge",
        "_attention_merge_kernel",
        signature | dict.fromkeys(constexprs, "constexpr"),
        constexprs,
        num_warps=4,
        num_stages=3,
    )
    assert resources.spill_bytes == 0
