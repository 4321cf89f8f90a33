"""Passes over the paged cache, however a sequence is cut and wherever its blocks lie."""

import functools
from pathlib import Path

import pytest
import torch

from shared.engine.runner import ModelRunner
from shared.engine.spans import Span
from tests.checkpoints import CONFIGS, MAX_LEN, expected_logits, random_tokens, save_checkpoint
from tests.shared.engine.passes import (
    assert_close,
    block_tables,
    check_fork,
    check_pieces,
    check_ragged,
)

ATOL = 1e-5
BLOCK_SIZES = [1, 5, 16]
KINDS = ["llama-llama3-tied", "mistral-sliding", "qwen2-half-sliding", "qwen3"]


close = functools.partial(assert_close, atol=ATOL)


def load(directory: Path, block_size: int, *, num_tables: int = 1) -> ModelRunner:
    """A runner with room for so many full contexts."""
    num_blocks = num_tables * -(-MAX_LEN // block_size)
    return ModelRunner.load(directory, num_blocks=num_blocks, block_size=block_size)


@pytest.mark.parametrize("block_size", BLOCK_SIZES)
@pytest.mark.parametrize("name", KINDS)
def test_chunks_decodes_and_verify_rows_equal_one_pass(
    name: str, block_size: int, tmp_path: Path
) -> None:
    """A sequence computed in pieces of any size gives the logits of one pass, to the last token."""
    model = save_checkpoint(tmp_path, CONFIGS[name])
    runner = load(tmp_path, block_size)
    check_pieces((runner, model, ATOL), (17, 1, 5, 30, 1, 1, 9, 64), block_size)


@pytest.mark.parametrize("block_size", BLOCK_SIZES)
@pytest.mark.parametrize("name", KINDS)
def test_a_ragged_pass_equals_its_sequences_alone(
    name: str, block_size: int, tmp_path: Path
) -> None:
    """Prefill chunks, decodes and verify rows of many sequences share a pass and do not mix."""
    model = save_checkpoint(tmp_path, CONFIGS[name])
    starts = [0, 40, 100, 41, 7, 40, 64, 0, 127]
    num_rows = [33, 1, 5, 5, 1, 1, 20, 1, 1]
    num_logits = [1, 1, 5, 5, 1, 1, 0, 1, 1]
    runner = load(tmp_path, block_size, num_tables=len(starts))
    shapes = list(zip(starts, num_rows, num_logits, strict=True))
    check_ragged((runner, model, ATOL), shapes, block_size)


@pytest.mark.parametrize(
    ("num_sequences", "num_rows"), [(1, 1), (1, 8), (4, 1), (4, 5), (16, 1), (16, 5)]
)
def test_an_even_batch_equals_its_sequences_alone(
    num_sequences: int, num_rows: int, tmp_path: Path
) -> None:
    """The common case, as many rows from every sequence, whose contexts differ a little."""
    model = save_checkpoint(tmp_path, CONFIGS["llama"])
    runner = load(tmp_path, 16, num_tables=num_sequences)
    spans, expected = [], []
    for index, table in enumerate(block_tables(num_sequences, 16)):
        token_ids = random_tokens(40 + index + num_rows, seed=index)
        runner.run([Span(token_ids[:-num_rows], 0, table, 0)])
        spans.append(Span(token_ids[-num_rows:], 40 + index, table, num_rows))
        expected.append(expected_logits(model, token_ids)[-num_rows:])
    close(runner.run(spans), torch.cat(expected))


@pytest.mark.parametrize("first_block", [0, 3], ids=["at-the-start", "further-on"])
def test_blocks_in_a_row_are_read_in_place(first_block: int, tmp_path: Path) -> None:
    """Consecutive ids take another way through attention and give the same."""
    model = save_checkpoint(tmp_path, CONFIGS["llama"])
    runner = load(tmp_path, 16, num_tables=2)
    table = range(first_block, first_block + 4)
    token_ids = random_tokens(60)
    runner.run([Span(token_ids[:50], 0, table, 0)])
    logits = runner.run([Span(token_ids[50:], 50, table, 10)])
    close(logits, expected_logits(model, token_ids)[50:])


def test_rejected_tokens_leave_no_trace(tmp_path: Path) -> None:
    """What a verify round wrote and did not confirm is overwritten by what was right."""
    model = save_checkpoint(tmp_path, CONFIGS["qwen3"])
    runner = load(tmp_path, 16)
    (table,) = block_tables(1, 16)
    token_ids = random_tokens(40)
    wrong = [(token_id + 1) % 97 for token_id in token_ids[20:30]]
    runner.run([Span(token_ids[:20], 0, table, 0)])
    runner.run([Span(wrong, 20, table, 10)])
    logits = runner.run([Span(token_ids[20:23], 20, table, 3)])
    close(logits, expected_logits(model, token_ids[:23])[20:])


def test_a_fork_goes_its_own_way(tmp_path: Path) -> None:
    """A branch shares full blocks, copies the partial one, and disturbs nobody."""
    model = save_checkpoint(tmp_path, CONFIGS["llama"])
    check_fork((load(tmp_path, 16), model, ATOL))


def test_sequences_may_share_a_prefix(tmp_path: Path) -> None:
    """Two sequences read the same full block in one pass."""
    model = save_checkpoint(tmp_path, CONFIGS["llama"])
    runner = load(tmp_path, 16)
    prefix = random_tokens(16, seed=1)
    tails = [random_tokens(3, seed=2), random_tokens(9, seed=3)]
    runner.run([Span(prefix, 0, [5], 0)])
    logits = runner.run([Span(tails[0], 16, [5, 0], 3), Span(tails[1], 16, [5, 1], 9)])
    close(logits, torch.cat([expected_logits(model, prefix + tail)[16:] for tail in tails]))


def test_decodes_and_verify_rounds_agree_far_below_the_promise(tmp_path: Path) -> None:
    """With 16-bit weights a row hardly depends on its pass; where sums are steady, not at all."""
    save_checkpoint(tmp_path, CONFIGS["llama"], dtype=torch.float16)
    runner = load(tmp_path, 16)
    token_ids = random_tokens(30)
    together = runner.run([Span(token_ids, 0, range(8), 30)])
    alone = torch.cat(
        [runner.run([Span([token_ids[index]], index, range(8), 1)]) for index in range(30)]
    )
    torch.testing.assert_close(alone, together, atol=2e-6, rtol=0)


def test_logits_are_fresh_memory_in_float32(tmp_path: Path) -> None:
    """The caller may keep what it got while the next pass runs."""
    save_checkpoint(tmp_path, CONFIGS["llama"], dtype=torch.bfloat16)
    runner = load(tmp_path, 16)
    first = runner.run([Span([1, 2, 3], 0, range(8), 3)])
    kept = first.clone()
    runner.run([Span([4, 5, 6], 0, range(8), 3)])
    assert first.dtype == torch.float32
    assert torch.equal(first, kept)


def test_the_configuration_is_at_hand(tmp_path: Path) -> None:
    """Callers learn limits from the runner, not from the directory."""
    save_checkpoint(tmp_path, CONFIGS["llama"])
    assert load(tmp_path, 16).config.max_model_len == MAX_LEN
