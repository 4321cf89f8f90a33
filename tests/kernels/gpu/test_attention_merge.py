"""Adding up partial results against the formula."""

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu.attention_merge import (
    PARTS_AT_ONCE,
    is_last_part,
    merge_parts,
    merge_parts_reference,
    store_part,
)
from tests.kernels.gpu.compiled import compile_for_sm90

BLOCK_M, HEAD_DIM = tl.constexpr(16), tl.constexpr(96)
Part = tuple[Tensor, Tensor, Tensor]


@triton.jit  # type: ignore[untyped-decorator]
def _kernel(  # noqa: PLR0917  # Triton passes arguments by position
    counter_ptr: tl.tensor,
    outputs_ptr: tl.tensor,
    maxima_ptr: tl.tensor,
    sums_ptr: tl.tensor,
    merged_outputs_ptr: tl.tensor,
    merged_maxima_ptr: tl.tensor,
    merged_sums_ptr: tl.tensor,
    num_rows: tl.tensor,
) -> None:
    """Every program finishes one part, and the last one stores what they are together."""
    num_parts = tl.num_programs(0)
    if is_last_part(counter_ptr, num_parts):
        outputs, maxima, sums = merge_parts(
            outputs_ptr, maxima_ptr, sums_ptr, tl.full([], 0, tl.int64),
            tl.full([], BLOCK_M, tl.int64), num_parts, num_rows, BLOCK_M, HEAD_DIM,
        )  # fmt: skip
        store_part(
            merged_outputs_ptr, merged_maxima_ptr, merged_sums_ptr, tl.full([], 0, tl.int64),
            outputs, maxima, sums, num_rows, HEAD_DIM,
        )  # fmt: skip


def make_parts(num_parts: int, device: str) -> Part:
    """Random parts."""
    generator = torch.Generator().manual_seed(0)
    shape = (num_parts, BLOCK_M.value)
    outputs = torch.rand(*shape, HEAD_DIM.value, generator=generator) * 4 + 0.1
    maxima, sums = torch.rand(2, *shape, generator=generator) * 4 + 0.1
    return outputs.to(device), maxima.to(device), sums.to(device)


def merge(parts: Part, num_rows: int) -> Part:
    """What the kernel makes of them, in buffers full of NaN."""
    merged = [torch.full_like(part[0], float("nan")) for part in parts]
    counter = torch.zeros(1, dtype=torch.int32, device=parts[0].device)
    _kernel[(len(parts[0]),)](counter, *parts, *merged, num_rows)
    assert counter.item() == 0
    return merged[0], merged[1], merged[2]


@pytest.mark.parametrize("num_parts", [1, 2, 8, 63])
def test_parts_are_weighted_by_their_maxima(num_parts: int, device: str) -> None:
    """By whichever program is the last, once, and only rows that are any."""
    parts = make_parts(num_parts, device)
    for got, expected in zip(merge(parts, 13), merge_parts_reference(*parts), strict=True):
        torch.testing.assert_close(got[:13], expected[:13], rtol=1e-5, atol=1e-5)
        assert got[13:].isnan().all()


def test_a_part_in_which_nothing_was_seen_counts_nothing(device: str) -> None:
    """Whatever it holds, first, last and in between, the bits are those of the one that counts."""
    outputs, maxima, sums = make_parts(40, device)
    is_empty = torch.arange(40, device=device) != 17
    maxima[is_empty] = float("-inf")
    outputs[is_empty] = float("nan")
    sums[is_empty] = 0
    merged = merge((outputs, maxima, sums), BLOCK_M.value)
    for got, part in zip(merged, (outputs, maxima, sums), strict=True):
        assert torch.equal(got, part[17])


@pytest.mark.parametrize("head_dim", [64, 128, 256])
def test_the_launch_that_adds_up_rows_fits_hopper(head_dim: int) -> None:
    """Without a spill."""
    constexprs = {
        "num_kv_heads": 8, "head_dim": head_dim, "block_m": 32, "block_parts": PARTS_AT_ONCE,
        "is_dependent": True,
    }  # fmt: skip
    resources = compile_for_sm90(
        "kernels.gpu.attention_merge",
        "_merge_rows_kernel",
        dict.fromkeys(("query_starts_ptr", "rows_ptr"), "*i32")
        | dict.fromkeys(("outputs_ptr", "maxima_ptr", "sums_ptr"), "*fp32")
        | {"out_ptr": "*bf16", "num_sequences": "i32"}
        | dict.fromkeys(constexprs, "constexpr"),
        constexprs,
        num_warps=4,
        num_stages=3,
        options={"enable_fp_fusion": False},
    )
    assert resources.spill_bytes == 0
    assert resources.waits_first
