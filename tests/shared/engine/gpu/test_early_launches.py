"""Kernels that are set up while others end: the same bits as one after the other, every time."""

import dataclasses
import random
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kernels.gpu import dependent_launch
from shared.engine.gpu.runner import GpuRunner
from shared.engine.spans import Span
from tests.checkpoints import random_tokens, save_checkpoint
from tests.shared.engine.gpu.runners import LIMITS, on_gpus
from tests.shared.engine.passes import block_tables, no_progress

REPLAYS = 50
# Tokens before and rows of each sequence: few rows, rows of our own products, and of the library's.
ROUNDS = (
    ((30, 1),), ((30, 5),), ((90, 4), (40, 8)), ((20, 5), (90, 1), (60, 3)),
    ((0, 17), (40, 1)), ((0, 60),), ((0, 90), (30, 1)),
)  # fmt: skip


def run_rounds(directory: Path, *, has_graphs: bool) -> list[Tensor]:
    """The logits of ROUNDS, REPLAYS times over, in random order behind one another."""
    limits = dataclasses.replace(LIMITS, max_graph_rows=96 * has_graphs)
    runner = GpuRunner.load(
        directory,
        limits,
        device=torch.device("cuda"),
        dtype=torch.bfloat16,
        cache_dtype=None,
        progress=no_progress,
    )
    runner.capture(no_progress)
    tables, tokens = block_tables(3), random_tokens(128)
    for table in tables:
        runner.run([Span(tokens, 0, table, 0)])
    order = list(ROUNDS * REPLAYS)
    random.Random(1).shuffle(order)
    logits = []
    for sequences in order:
        spans = [
            Span(tokens[start : start + rows], start, table, rows)
            for (start, rows), table in zip(sequences, tables, strict=False)
        ]
        logits.append(runner.run(spans).clone())
    return logits


@pytest.mark.gpu
@pytest.mark.parametrize("has_graphs", [True, False])
@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_a_round_has_the_same_bits_however_its_kernels_are_launched(
    name: str, *, has_graphs: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In graphs and without, with norms inside products and outside."""
    save_checkpoint(tmp_path, on_gpus(name))
    early = run_rounds(tmp_path, has_graphs=has_graphs)
    monkeypatch.setattr(dependent_launch, "_can_start_early", lambda _device: False)
    for one, other in zip(early, run_rounds(tmp_path, has_graphs=has_graphs), strict=True):
        assert torch.equal(one, other)
