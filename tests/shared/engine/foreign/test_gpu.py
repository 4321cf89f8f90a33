"""transformers' modules with the kernels of a GPU, against transformers alone."""

import dataclasses
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from shared.common.errors import ConfigError
from shared.engine.foreign.gpu import foreign_gpu_runner
from shared.engine.foreign.loading import foreign_config, read_model
from shared.engine.gpu.limits import GpuLimits
from shared.engine.gpu.requirements import HEAD_DIMS
from shared.engine.gpu.runner import GpuRunner
from shared.engine.spans import Span
from tests.checkpoints import MAX_LEN, expected_logits, random_tokens, save_checkpoint
from tests.shared.engine.foreign.architectures import foreign

BLOCK_SIZE = 16
LIMITS = GpuLimits(
    num_blocks=3 * MAX_LEN // BLOCK_SIZE,
    block_size=BLOCK_SIZE,
    max_rows=192,
    max_sequences=4,
    max_model_len=MAX_LEN,
    max_graph_rows=8,
)
# Groups, a cap and windows; heads of 8 in rows of 32; keys wider than values, and experts.
KINDS = ["gemma2", "gpt2", "deepseek_v3"]


def load(directory: Path, device: str, limits: GpuLimits = LIMITS) -> GpuRunner:
    model: Any = read_model(directory, torch.float32).to(device)
    config = foreign_config(model, directory, HEAD_DIMS)
    return foreign_gpu_runner(config, model, limits, lambda _event, _done, _total: None)


def close(logits: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(logits.cpu(), expected, atol=2e-4, rtol=0)


def tables(num_tables: int) -> list[list[int]]:
    """Disjoint block tables of a full context each, in no order."""
    ids = list(range(num_tables * MAX_LEN // BLOCK_SIZE))
    random.Random(5).shuffle(ids)
    return [ids[table::num_tables] for table in range(num_tables)]


def saved(directory: Path, model_type: str) -> nn.Module:
    """Two layers, one of each kind: the interpreter is slow."""
    options: dict[str, object] = {"num_hidden_layers": 2}
    return save_checkpoint(directory, foreign(model_type, **options))


@pytest.mark.parametrize("model_type", KINDS)
def test_pieces_and_mixed_rounds_give_each_sequence_its_own_logits(
    model_type: str, tmp_path: Path, device: str
) -> None:
    """Prefill in two chunks, then decodes and verify rows beside another sequence's prefill."""
    model = saved(tmp_path, model_type)
    runner = load(tmp_path, device)
    first, second, third = tables(3)
    one, two, three = (random_tokens(60, seed=seed) for seed in range(3))
    whole = runner.run([Span(one[:40], 0, first, 40)]).clone()
    close(whole, expected_logits(model, one[:40]))
    runner.run([Span(two[:20], 0, second, 0), Span(three[:33], 0, third, 0)])
    mixed = runner.run(
        [
            Span(one[40:60], 40, first, 0),
            Span(two[20:21], 20, second, 1),
            Span(three[33:38], 33, third, 5),
        ]
    )
    expected = [expected_logits(model, two[:21])[20:], expected_logits(model, three[:38])[33:]]
    close(mixed, torch.cat(expected))


def test_a_copied_block_goes_its_own_way(tmp_path: Path, device: str) -> None:
    """A fork: the same beginning in another block, then other tokens."""
    model = saved(tmp_path, "gemma2")
    runner = load(tmp_path, device)
    tokens = random_tokens(24)
    runner.run([Span(tokens[:10], 0, [0, 1], 0)])
    runner.copy_blocks([(0, 5)])
    runner.run([Span(tokens[10:], 10, [0, 1], 1)])
    other = [*tokens[:10], *random_tokens(6, seed=9)]
    forked = runner.run([Span(other[10:], 10, [5, 6], 6)])
    close(forked, expected_logits(model, other)[10:])


def test_rounds_may_be_smaller_than_the_proof(tmp_path: Path, device: str) -> None:
    """Twelve rows, one sequence, a cache of three contexts: it is run in as many passes as need be.

    The proof's tables are of one context each, however large the cache.
    """
    saved(tmp_path, "gpt2")
    limits = dataclasses.replace(LIMITS, max_rows=12, max_sequences=1, max_graph_rows=2)
    load(tmp_path, device, limits)


def test_too_many_heads_a_group_are_refused(tmp_path: Path, device: str) -> None:
    """They must fit the smallest tile of a kernel."""
    sizes = {"num_attention_heads": 24, "num_key_value_heads": 1}
    save_checkpoint(tmp_path, foreign("olmo2", **sizes))
    with pytest.raises(ConfigError, match="24 query heads a key head"):
        load(tmp_path, device)
