"""Passes on a GPU's path against transformers, however a sequence is cut and batched."""

import copy
import random
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedConfig

from kernels.gpu.attention_work import max_items
from shared.engine.gpu.limits import GpuLimits
from shared.engine.gpu.runner import GpuRunner
from shared.engine.spans import Span
from tests.checkpoints import CONFIGS, MAX_LEN, expected_logits, random_tokens, save_checkpoint

# Rows of a tile that are none hold whatever memory holds; numpy warns of it in the interpreter.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.runtime.interpreter")

BLOCK_SIZE = 16
LIMITS = GpuLimits(
    num_blocks=3 * MAX_LEN // BLOCK_SIZE,
    block_size=BLOCK_SIZE,
    max_rows=192,
    max_sequences=4,
    max_model_len=MAX_LEN,
    max_graph_rows=16,
)
KINDS = ["llama-llama3-tied", "llama-yarn-biased", "mistral-sliding", "qwen2-half-sliding", "qwen3"]


def on_gpus(name: str) -> PreTrainedConfig:
    """One of CONFIGS with heads of a size that the kernels take."""
    config = copy.deepcopy(CONFIGS[name])
    config.head_dim = 32
    return config


def load(directory: Path, device: str, limits: GpuLimits = LIMITS) -> GpuRunner:
    return GpuRunner.load(
        directory,
        limits,
        device=torch.device(device),
        dtype=torch.float32,
        progress=lambda _event, _done, _total: None,
    )


def close(logits: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(logits.cpu(), expected, atol=2e-4, rtol=0)


def tables(num_tables: int) -> list[list[int]]:
    """Disjoint block tables of a full context each, in no order."""
    ids = list(range(num_tables * MAX_LEN // BLOCK_SIZE))
    random.Random(5).shuffle(ids)
    return [ids[table::num_tables] for table in range(num_tables)]


@pytest.mark.parametrize("name", KINDS)
def test_chunks_decodes_and_verify_rows_equal_one_pass(
    name: str, tmp_path: Path, device: str
) -> None:
    """A sequence computed in pieces of any size gives the logits of one pass, to the last token."""
    model = save_checkpoint(tmp_path, on_gpus(name))
    runner = load(tmp_path, device)
    (table,) = tables(1)
    token_ids = random_tokens(MAX_LEN)
    rows, start = [], 0
    for num_rows in (57, 1, 5, 1, 64):
        tokens = token_ids[start : start + num_rows]
        rows.append(runner.run([Span(tokens, start, table, num_rows)]).clone())
        start += num_rows
    close(torch.cat(rows), expected_logits(model, token_ids))


def test_a_mixed_round_gives_each_sequence_its_own_logits(tmp_path: Path, device: str) -> None:
    """A prefill chunk that is not the last, a decode and verify rows, in one pass."""
    model = save_checkpoint(tmp_path, on_gpus("llama"))
    runner = load(tmp_path, device)
    first, second, third = tables(3)
    one, two, three = (random_tokens(60, seed=seed) for seed in range(3))
    runner.run([Span(two[:20], 0, second, 0), Span(three[:33], 0, third, 0)])
    mixed = runner.run(
        [
            Span(one[:50], 0, first, 0),
            Span(two[20:21], 20, second, 1),
            Span(three[33:38], 33, third, 5),
        ]
    ).clone()
    expected = [expected_logits(model, two[:21])[20:], expected_logits(model, three[:38])[33:]]
    close(mixed, torch.cat(expected))
    rest = runner.run([Span(one[50:], 50, first, 1)])
    close(rest, expected_logits(model, one)[-1:])


def test_a_copied_block_goes_its_own_way(tmp_path: Path, device: str) -> None:
    """A fork: the same beginning in another block, then other tokens."""
    model = save_checkpoint(tmp_path, on_gpus("llama"))
    runner = load(tmp_path, device)
    tokens = random_tokens(24)
    runner.run([Span(tokens[:10], 0, [0, 1], 0)])
    runner.copy_blocks([(0, 5)])
    runner.run([Span(tokens[10:], 10, [0, 1], 1)])
    other = [*tokens[:10], *random_tokens(6, seed=9)]
    forked = runner.run([Span(other[10:], 10, [5, 6], 6)])
    close(forked, expected_logits(model, other)[10:])


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


@pytest.mark.parametrize("num_rows", [1, 24])
def test_with_fixed_rows_every_pass_has_so_many(num_rows: int, tmp_path: Path, device: str) -> None:
    """The same logits as in one pass, whatever shares it and however it is cut; bit for bit."""
    model = save_checkpoint(tmp_path, on_gpus("llama"))
    limits = GpuLimits(
        24, BLOCK_SIZE, max_rows=64, max_sequences=4, max_model_len=MAX_LEN, fixed_rows=24
    )
    first, second, third = tables(3)
    tokens, other = random_tokens(40), random_tokens(33, seed=5)
    alone = load(tmp_path, device, limits)
    alone.run([Span(tokens[:-num_rows], 0, first, 0)])
    expected = alone.run([Span(tokens[-num_rows:], 40 - num_rows, first, num_rows)]).clone()
    close(expected, expected_logits(model, tokens)[-num_rows:])
    crowded = load(tmp_path, device, limits)
    crowded.run([Span(other, 0, second, 1), Span(tokens[:-num_rows], 0, third, 0)])
    spans = [Span(other[:3], 0, first, 3), Span(tokens[-num_rows:], 40 - num_rows, third, num_rows)]
    assert torch.equal(crowded.run(spans)[3:], expected)


@pytest.mark.parametrize("fixed_rows", [None, 24])
def test_a_round_too_large_for_a_pass_is_run_in_several(
    fixed_rows: int | None, tmp_path: Path, device: str
) -> None:
    """More rows than buffers, and more attention than lists have room for: no row is left out."""
    model = save_checkpoint(tmp_path, on_gpus("llama"))
    limits = GpuLimits(
        24, BLOCK_SIZE, max_rows=16, max_sequences=4, max_model_len=64, fixed_rows=fixed_rows
    )
    runner = load(tmp_path, device, limits)
    group_size = runner.config.layout.group_size
    (table,) = tables(1)
    tokens = random_tokens(48)
    num_shared = 16
    spans = [
        Span(tokens[num_shared : num_shared + num_rows], num_shared, table, num_rows)
        for num_rows in (32, 16, 16, 1)
    ]
    runner.run([Span(tokens[:num_shared], 0, table, 0)])
    logits = runner.run(spans)
    assert sum(len(span.token_ids) for span in spans) > limits.max_pass_rows
    lens = [(len(span.token_ids), num_shared + len(span.token_ids)) for span in spans]
    tiling = limits.tiling_of(lens, group_size)
    num_items = max_items(lens, group_size=group_size, block_m=tiling.block_m)
    assert num_items > limits.room_for_items(tiling, group_size)
    expected = expected_logits(model, tokens)[num_shared:]
    close(logits, torch.cat([expected[: len(span.token_ids)] for span in spans]))
