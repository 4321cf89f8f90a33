"""Attention over a cache of 8 bits: the formula on what the cache keeps, and the same bits."""

from dataclasses import replace

import pytest
import torch

from kernels.gpu.verify_attention import FP8, FP8_CONFIGS
from tests.kernels.gpu.attention_rounds import (
    Lens,
    Round,
    assert_close,
    attend,
    attend_reference,
    make_round,
)
from tests.kernels.gpu.test_verify_attention import CUT, MIX, WHOLE, sub_round


def rounded(attention: Round) -> Round:
    """The same with keys and values of 8 bits. Where nobody looks it is NaN as before.

    Triton's interpreter reads that as 480, which no other number there comes near to.
    """
    return replace(attention, keys=attention.keys.to(FP8), values=attention.values.to(FP8))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_rows_are_attended_to_by_the_formula(dtype: torch.dtype, device: str) -> None:
    """Prefill, decode and verify rows of any dtype; what rounding changes is far more."""
    exact = make_round(MIX, device=device, dtype=dtype)
    attention = rounded(exact)
    expected = attend_reference(attention)
    assert_close(attend(attention), expected)
    assert (attend_reference(exact) - expected).abs().max() > 2e-2 * expected.abs().max()


@pytest.mark.parametrize("block_size", [64, 256])
@pytest.mark.parametrize("window", [None, 70])
def test_any_block_and_window(block_size: int, window: int | None, device: str) -> None:
    """Blocks as large as a tile and larger, several key heads, with and without a window."""
    lens: Lens = [(5, 280), (1, 63)]
    exact = make_round(lens, device=device, num_kv_heads=2, block_size=block_size)
    attention = rounded(exact)
    assert_close(attend(attention, window=window), attend_reference(attention, window=window))


@pytest.mark.parametrize(("block_m", "head_dim"), [*FP8_CONFIGS, (16, 96), (128, 96)])
def test_any_head_and_tile(block_m: int, head_dim: int, device: str) -> None:
    """Every pinned configuration, and a head that is no power of 2."""
    attention = rounded(make_round([(9, 100)], device=device, head_dim=head_dim))
    assert_close(attend(attention, block_m=block_m), attend_reference(attention))


def test_every_number_is_read_as_what_it_is(device: str) -> None:
    """Small ones too: a row that sees one token has that token's values, bit for bit."""
    attention = rounded(make_round([(1, 1)], device=device, group_size=1, head_dim=256))
    codes = torch.arange(256, dtype=torch.uint8).view(FP8)
    finite = codes.float().nan_to_num().to(device)
    block = int(attention.batch.block_tables[0, 0])
    attention.values.view(torch.uint8)[block, 0, 0] = finite.to(FP8).view(torch.uint8)
    assert torch.equal(attend(attention)[0].float(), finite)


@pytest.mark.parametrize("window", [None, 100])
def test_a_verified_row_equals_the_row_decoded(window: int | None, device: str) -> None:
    """For one block_m, drafts before and after a row change no bit of it, even across a chunk."""
    attention = rounded(make_round([(8, 260), (7, 515)], device=device, group_size=7))
    together = attend(attention, window=window)
    for sequence, first, place in [(0, 3, 3), (0, 7, 7), (1, 0, 8), (1, 6, 14)]:
        alone = attend(sub_round(attention, sequence, 1, first), window=window)
        assert torch.equal(together[place], alone[0])


def test_cutting_changes_no_bit(device: str) -> None:
    """A tile whole, or in chunks that several programs compute and one merges, is the same."""
    attention = rounded(make_round([(3, 580), (1, 130)], device=device, group_size=7))
    whole, cut = (
        attend(attention, chunk_len=64, num_processors=processors) for processors in (WHOLE, CUT)
    )
    assert torch.equal(whole, cut)
