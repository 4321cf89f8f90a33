"""Passes on a GPU's path against transformers, however a sequence is cut and batched."""

import dataclasses
import functools
from pathlib import Path

import pytest
import torch

from kernels.gpu.attention_work import max_items
from kernels.gpu.invariant_linear import invariant_linear
from shared.engine.gpu import decoder
from shared.engine.gpu import runner as runner_module
from shared.engine.gpu.limits import GpuLimits, RoundShape
from shared.engine.spans import Span
from tests.checkpoints import MAX_LEN, expected_logits, random_tokens, save_checkpoint
from tests.shared.engine.gpu.runners import LIMITS, ROWS_OF_NOBODY, load, on_gpus
from tests.shared.engine.passes import (
    BLOCK_SIZE,
    assert_close,
    block_tables,
    check_fork,
    check_mixed,
    check_pieces,
)

pytestmark = ROWS_OF_NOBODY

ATOL = 2e-4
KINDS = ["llama-llama3-tied", "llama-yarn-biased", "mistral-sliding", "qwen2-half-sliding", "qwen3"]


close = functools.partial(assert_close, atol=ATOL)


@pytest.mark.parametrize("name", KINDS)
def test_chunks_decodes_and_verify_rows_equal_one_pass(
    name: str, tmp_path: Path, device: str
) -> None:
    """A sequence computed in pieces of any size gives the logits of one pass, to the last token."""
    model = save_checkpoint(tmp_path, on_gpus(name))
    check_pieces((load(tmp_path, device), model, ATOL), (57, 1, 5, 1, 64))


def test_a_mixed_round_gives_each_sequence_its_own_logits(tmp_path: Path, device: str) -> None:
    """A prefill chunk that is not the last, a decode and verify rows, in one pass."""
    model = save_checkpoint(tmp_path, on_gpus("llama"))
    check_mixed((load(tmp_path, device), model, ATOL))


def test_a_copied_block_goes_its_own_way(tmp_path: Path, device: str) -> None:
    """A fork: the same beginning in another block, then other tokens."""
    model = save_checkpoint(tmp_path, on_gpus("llama"))
    check_fork((load(tmp_path, device), model, ATOL))


@pytest.mark.parametrize("most", [0, 128])
def test_copies_are_made_in_their_order_before_the_next_pass(
    most: int, tmp_path: Path, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy of a copy; by the pass itself, or in a launch of their own where they are too many."""
    monkeypatch.setattr(runner_module, "MAX_COPIES", most)
    model = save_checkpoint(tmp_path, on_gpus("llama"))
    runner, tokens = load(tmp_path, device), random_tokens(20)
    runner.run([Span(tokens[:12], 0, [3], 0)])
    runner.copy_blocks([(3, 5)])
    runner.copy_blocks([(5, 1), (5, 7)])
    runner.run([Span(tokens[:3], 0, [3], 0)])  # copied before anything is written
    logits = [runner.run([Span(tokens[12:], 12, [block, 8], 1)]).clone() for block in (1, 7)]
    expected = expected_logits(model, tokens)[-1:]
    for own in logits:
        close(own, expected)


def test_a_pass_that_fails_leaves_its_copies_to_the_next(
    tmp_path: Path, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever is run again finds them made."""
    model = save_checkpoint(tmp_path, on_gpus("llama"))
    runner, tokens = load(tmp_path, device), random_tokens(20)
    runner.run([Span(tokens[:12], 0, [3], 0)])
    runner.copy_blocks([(3, 5)])
    with monkeypatch.context() as patch:
        patch.setattr(runner._buffers, "stage", lambda *_: 1 // 0)
        with pytest.raises(ZeroDivisionError):
            runner.run([Span(tokens[12:], 12, [5, 8], 1)])
    close(runner.run([Span(tokens[12:], 12, [5, 8], 1)]), expected_logits(model, tokens)[-1:])


def test_what_does_not_fit_the_work_at_once_is_run_in_halves(tmp_path: Path, device: str) -> None:
    """Sequences that share blocks can need more room than the cache suggests."""
    model = save_checkpoint(tmp_path, on_gpus("llama"))
    limits = GpuLimits(8, BLOCK_SIZE, max_rows=64, max_sequences=4, max_model_len=MAX_LEN)
    runner = load(tmp_path, device, limits)
    tokens = random_tokens(100)
    table = list(range(8))
    runner.run([Span(tokens[:50], 0, table, 0)])
    runner.run([Span(tokens[50:99], 50, table, 0)])
    expected = expected_logits(model, tokens)[99:]
    close(runner.run([Span(tokens[99:], 99, table, 1)] * 4), expected.expand(4, -1))


@pytest.mark.parametrize(("name", "num_rows"), [("qwen3", 1), ("qwen2-half-sliding", 24)])
def test_batch_invariant_logits_have_the_same_bits_in_any_company(
    name: str, num_rows: int, tmp_path: Path, device: str
) -> None:
    """Alone, in a crowd, or cut elsewhere: those of one pass."""
    model = save_checkpoint(tmp_path, on_gpus(name))
    limits = dataclasses.replace(LIMITS, is_batch_invariant=True)
    first, second, third = block_tables(3)
    tokens, other = random_tokens(40), random_tokens(33, seed=5)
    alone = load(tmp_path, device, limits)
    expected = alone.run([Span(tokens, 0, first, num_rows)]).clone()
    close(expected, expected_logits(model, tokens)[-num_rows:])
    crowded = load(tmp_path, device, limits)
    crowded.run([Span(other, 0, second, 1), Span(tokens[:11], 0, third, 0)])
    crowded.run([Span(tokens[11:-num_rows], 11, third, 0), Span(other[:3], 0, first, 3)])
    spans = [Span(other[:3], 0, first, 3), Span(tokens[-num_rows:], 40 - num_rows, third, num_rows)]
    assert torch.equal(crowded.run(spans)[3:], expected)


@pytest.mark.parametrize("is_batch_invariant", [False, True])
def test_a_round_too_large_for_a_pass_is_run_in_several(
    is_batch_invariant: bool,  # noqa: FBT001 - a parameter of the test
    tmp_path: Path,
    device: str,
) -> None:
    """More rows than buffers, and more attention than lists have room for: no row is left out."""
    model = save_checkpoint(tmp_path, on_gpus("llama"))
    limits = GpuLimits(
        24, BLOCK_SIZE, max_rows=16, max_sequences=4, max_model_len=64,
        is_batch_invariant=is_batch_invariant,
    )  # fmt: skip
    runner = load(tmp_path, device, limits)
    group_size = runner.config.layout.group_size
    table = block_tables(1)[0][: 64 // BLOCK_SIZE]
    tokens = random_tokens(48)
    num_shared = 16
    spans = [
        Span(tokens[num_shared : num_shared + num_rows], num_shared, table, num_rows)
        for num_rows in (32, 16, 16, 1)
    ]
    runner.run([Span(tokens[:num_shared], 0, table, 0)])
    logits = runner.run(spans)
    assert sum(len(span.token_ids) for span in spans) > limits.max_rows
    lens = [(len(span.token_ids), num_shared + len(span.token_ids)) for span in spans]
    tiling = limits.tiling_of(RoundShape.of(spans), group_size)
    num_items = max_items(lens, group_size=group_size, block_m=tiling.block_m)
    assert num_items > limits.room_for_items(tiling, group_size)
    expected = expected_logits(model, tokens)[num_shared:]
    close(logits, torch.cat([expected[: len(span.token_ids)] for span in spans]))


@pytest.mark.parametrize(("inner_size", "most"), [(80, 64), (84, 16)])
def test_our_own_product_is_for_rows_of_whole_16_bytes(
    inner_size: int, most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the GPUs it is fast on; with other sizes all rows but few are the library's."""
    monkeypatch.setattr(decoder, "_is_hopper", lambda _: True)
    config = on_gpus("llama")
    config.intermediate_size = inner_size
    save_checkpoint(tmp_path, config)
    layers = load(tmp_path, "cpu")._decoder
    assert isinstance(layers, decoder.GpuDecoder)
    own = [rows for rows in (17, 64, 65) if layers._linear_of(rows) is invariant_linear]
    assert own == [rows for rows in (17, 64) if rows <= most]
