"""A drafter's passes that begin before the one before is read find what passes one by one find."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from kernels.gumbel_top import Top
from shared.engine.gpu.ranking import GpuRanker
from shared.engine.gpu.runner import GpuRunner
from shared.engine.gpu.sampling import GpuSampler
from shared.engine.ranking import KNOWN, Collect
from shared.engine.sampling import Row
from shared.engine.spans import Span
from shared.protocol.sampling import SamplingParams
from tests.checkpoints import random_tokens, save_checkpoint
from tests.shared.engine.gpu.runners import LIMITS, ROWS_OF_NOBODY, load, on_gpus
from tests.shared.engine.passes import block_tables

pytestmark = ROWS_OF_NOBODY

PARAMS = (
    SamplingParams(seed=1, temperature=0.0),
    SamplingParams(seed=2, temperature=0.7),
    SamplingParams(seed=3, temperature=0.9, top_p=0.8),
)
PENALISED = SamplingParams(seed=4, temperature=0.7, repetition_penalty=1.3)
PROMPT_LENS = (13, 30, 3)  # one of them next to a block's end
NUM, NUM_STEPS, MAX_ROWS = 3, 6, 24


def load_both(directory: Path, device: str) -> tuple[GpuRunner, GpuSampler]:
    """A drafter's model and its sampler."""
    runner = load(directory, device, dataclasses.replace(LIMITS, is_drafter=True))
    vocab_size = runner.config.vocab_size
    sampler = GpuSampler(
        max_rows=MAX_ROWS, vocab_size=vocab_size, device=device, guesses=runner.guesses
    )
    return runner, sampler


class Sequences:
    """Three prompts on a model; each grows by the best token of every pass."""

    def __init__(
        self,
        directory: Path,
        device: str,
        params: Sequence[SamplingParams] = PARAMS,
        *,
        has_graphs: bool = True,
    ) -> None:
        self.runner, sampler = load_both(directory, device)
        if self.runner.graph_logits is not None and has_graphs:
            sampler.capture(self.runner.graph_logits, (1, 4, 16), (NUM,))
        self.ranker = GpuRanker(self.runner, sampler)
        self.ranker.warm_up(NUM)
        self.params = params
        self.tables = block_tables(len(params))
        self.tokens = [random_tokens(n, seed=i) for i, n in enumerate(PROMPT_LENS)]
        self.tops: list[list[Top]] = [[] for _ in params]
        self.runner.run([Span(t[:-1], 0, self.tables[i], 0) for i, t in enumerate(self.tokens)])

    def begin(self, indices: Sequence[int], follows: Sequence[int] = ()) -> Collect:
        """A pass of some sequences; those that follow are one token further than is known."""
        spans, rows = [], []
        for place, index in enumerate(indices):
            tokens = self.tokens[index]
            is_following = bool(follows) and follows[place] != KNOWN
            start = len(tokens) - 1 + is_following
            own = [0] if is_following else tokens[-1:]
            spans.append(Span(own, start, self.tables[index], 1))
            rows.append(Row(self.params[index], tokens, PROMPT_LENS[index]))
        return self.ranker.begin(spans, rows, NUM, follows)

    def take(self, indices: Sequence[int], tops: Sequence[Top]) -> None:
        for index, top in zip(indices, tops, strict=True):
            self.tokens[index].append(top.token_ids[0])
            self.tops[index].append(top)

    def check(self, expected: Sequence[Sequence[Top]]) -> None:
        """What was found so far is the same, scores to the last bits."""
        for found, all_right in zip(self.tops, expected, strict=True):
            right = all_right[: len(found)]
            assert [top.token_ids for top in found] == [top.token_ids for top in right]
            for ours, theirs in zip(found, right, strict=True):
                assert ours.scores == pytest.approx(theirs.scores, abs=1e-4)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model."""
    directory = tmp_path_factory.mktemp("model")
    save_checkpoint(directory, on_gpus("qwen3"))
    return directory


def one_by_one(sequences: Sequences) -> list[list[Top]]:
    """What passes find that begin when the one before is known."""
    everyone = range(len(sequences.tokens))
    for _ in range(NUM_STEPS):
        sequences.take(everyone, sequences.begin(everyone)())
    return sequences.tops


@pytest.fixture(scope="module")
def answers(checkpoint: Path, device: str) -> list[list[Top]]:
    return one_by_one(Sequences(checkpoint, device))


@pytest.mark.parametrize("sampler_graphs", ["with", "without"])
def test_passes_behind_one_another_find_the_same(
    sampler_graphs: str, checkpoint: Path, answers: list[list[Top]], device: str
) -> None:
    """Everything is one pass late, and the order of sequences changes every time."""
    sequences = Sequences(checkpoint, device, has_graphs=sampler_graphs == "with")
    order = [0, 1, 2]
    before = sequences.begin(order)
    for _ in range(NUM_STEPS - 1):
        next_order = [order[2], order[0], order[1]]
        behind = sequences.begin(next_order, [order.index(index) for index in next_order])
        sequences.take(order, before())
        order, before = next_order, behind
    sequences.take(order, before())
    sequences.check(answers)


def test_some_follow_and_others_are_known(
    checkpoint: Path, answers: list[list[Top]], device: str
) -> None:
    """One that was not in the pass before, and one of several tokens, beside one that follows."""
    sequences = Sequences(checkpoint, device)
    before = sequences.begin([1])
    tokens = sequences.tokens[2]
    spans = [
        Span(tokens[1:], 1, sequences.tables[2], 1),  # its last two tokens again, in one span
        Span([0], PROMPT_LENS[1], sequences.tables[1], 1),
        Span(sequences.tokens[0][-1:], PROMPT_LENS[0] - 1, sequences.tables[0], 1),
    ]
    rows = [Row(PARAMS[i], sequences.tokens[i], PROMPT_LENS[i]) for i in (2, 1, 0)]
    behind = sequences.ranker.begin(spans, rows, NUM, [KNOWN, 0, KNOWN])
    sequences.take([1], before())
    sequences.take([2, 1, 0], behind())
    sequences.check(answers)


def test_a_penalised_sequence_waits_beside_others_that_follow(
    checkpoint: Path, device: str
) -> None:
    """Its choice depends on a token that is not known: it takes part in every other pass."""
    params = (*PARAMS[:2], PENALISED)
    expected = one_by_one(Sequences(checkpoint, device, params))
    sequences = Sequences(checkpoint, device, params)
    before = sequences.begin([0, 1])
    behind = sequences.begin([2, 1, 0], [KNOWN, 1, 0])
    sequences.take([0, 1], before())
    third = sequences.begin([1, 0], [1, 2])
    sequences.take([2, 1, 0], behind())
    sequences.take([1, 0], third())
    sequences.check(expected)


def test_what_does_not_fit_one_pass_waits_for_the_one_before(
    checkpoint: Path, answers: list[list[Top]], device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then it is known what it goes on from, and it is cut as any other."""
    sequences = Sequences(checkpoint, device)
    monkeypatch.setattr(sequences.runner, "run_guessed", lambda *_: None)
    before = sequences.begin([0, 1, 2])
    behind = sequences.begin([2, 0], [2, 0])
    sequences.take([0, 1, 2], before())
    sequences.take([2, 0], behind())
    sequences.check(answers)


def test_unusable_logits_end_in_no_guess(checkpoint: Path, device: str) -> None:
    """A sequence without a next token takes part in the pass behind, and harms nobody."""
    sequences = Sequences(checkpoint, device)
    keys, _ = sequences.runner._cache.layers[0]
    keys[sequences.tables[1][0]] = float("nan")
    before = sequences.begin([0, 1, 2])
    behind = sequences.begin([0, 1, 2], [0, 1, 2])
    assert [len(top.token_ids) for top in before()] == [NUM, 0, NUM]
    assert [len(top.token_ids) for top in behind()] == [NUM, 0, NUM]


def test_warming_up_leaves_no_trace(checkpoint: Path, device: str) -> None:
    """The cache is empty."""
    runner, sampler = load_both(checkpoint, device)
    GpuRanker(runner, sampler).warm_up(NUM)
    assert not any(bool(torch.any(cache)) for layer in runner._cache.layers for cache in layer)
