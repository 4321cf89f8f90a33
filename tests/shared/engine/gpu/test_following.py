"""Rounds that begin before the one before is known choose what rounds one by one choose."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from shared.engine.following import Follow
from shared.engine.gpu.following import GpuFollower, ready_follower
from shared.engine.gpu.runner import GpuRunner
from shared.engine.gpu.sampling import GpuSampler
from shared.engine.samplers import Collect
from shared.engine.sampling import VerifyRequest
from shared.engine.spans import Span
from shared.protocol.sampling import SamplingParams
from tests.checkpoints import random_tokens, save_checkpoint
from tests.shared.engine.gpu.runners import ROWS_OF_NOBODY, load, on_gpus
from tests.shared.engine.passes import block_tables

pytestmark = ROWS_OF_NOBODY

PARAMS = (
    SamplingParams(seed=1, temperature=0.0),
    SamplingParams(seed=2, temperature=0.7),
    SamplingParams(seed=3, temperature=0.9, top_p=0.8),
)
PROMPT_LENS = (13, 30, 3)  # one of them next to a block's end
MAX_ROWS = 24


class Sequences:
    """Three prompts on a model, which are told apart by their blocks."""

    def __init__(self, directory: Path, device: str) -> None:
        self.runner: GpuRunner = load(directory, device)
        vocab_size = self.runner.config.vocab_size
        self.sampler = GpuSampler(max_rows=MAX_ROWS, vocab_size=vocab_size, device=device)
        if self.runner.graph_logits is not None:
            self.sampler.capture(self.runner.graph_logits, (1, 4, 16))
        self.follower: GpuFollower = ready_follower(self.runner, self.sampler)
        self.tables = block_tables(len(PARAMS))
        self.tokens = [random_tokens(n, seed=i) for i, n in enumerate(PROMPT_LENS)]
        self.runner.run([Span(t[:-1], 0, self.tables[i], 0) for i, t in enumerate(self.tokens)])

    def begin(self, drafts: Sequence[Sequence[int]]) -> Collect:
        """A round of all sequences, with guesses."""
        spans, requests = [], []
        for index, tokens in enumerate(self.tokens):
            rows = [tokens[-1], *drafts[index]]
            spans.append(Span(rows, len(tokens) - 1, self.tables[index], len(rows)))
            requests.append(self._request(index, drafts[index]))
        return self.sampler.begin_verify(self.runner.run(spans), requests)

    def begin_following(self, num_drafts: Sequence[int], order: Sequence[int]) -> Collect:
        """A round of these sequences behind one of all, which had so many guesses."""
        spans, requests, follows = [], [], []
        for index in order:
            start = len(self.tokens[index]) + num_drafts[index]
            spans.append(Span([0], start, self.tables[index], 1))
            requests.append(self._request(index, ()))
            first_row = sum(num_drafts[:index]) + index
            follows.append(Follow(first_row, num_drafts[index]))
        return self.follower.begin(spans, requests, follows)

    def take(self, confirmed: Sequence[Sequence[int]]) -> None:
        for index, tokens in enumerate(confirmed):
            self.tokens[index] += tokens

    def _request(self, index: int, drafts: Sequence[int]) -> VerifyRequest:
        tokens, prompt_len = self.tokens[index], PROMPT_LENS[index]
        return VerifyRequest(PARAMS[index], tokens, prompt_len, drafts)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model."""
    directory = tmp_path_factory.mktemp("model")
    save_checkpoint(directory, on_gpus("qwen3"))
    return directory


@pytest.fixture(scope="module")
def answers(checkpoint: Path, device: str) -> list[list[int]]:
    """Each sequence with what follows, one token after another."""
    sequences = Sequences(checkpoint, device)
    for _ in range(8):
        sequences.take(sequences.begin([()] * len(PARAMS))())
    return sequences.tokens


@pytest.mark.parametrize("num_right", [(0, 0, 0), (0, 1, 3), (3, 2, 0)])
def test_the_tokens_are_those_of_rounds_one_by_one(
    num_right: tuple[int, int, int], checkpoint: Path, answers: list[list[int]], device: str
) -> None:
    """After guesses of which some are right, and again behind rounds that were begun so."""
    sequences = Sequences(checkpoint, device)
    drafts = []
    for index, right in enumerate(num_right):
        rest = answers[index][PROMPT_LENS[index] :][:3]
        drafts.append(
            [*rest[:right], *((token + 1) % 64 for token in rest[right:])][: 3 - index % 2]
        )
    leader = sequences.begin(drafts)
    num_drafts = [len(one) for one in drafts]
    for _ in range(3):
        # Beyond a round that is known, one that is not: everything is one round late.
        behind = sequences.begin_following(num_drafts, range(len(PARAMS)))
        sequences.take(leader())
        leader, num_drafts = behind, [0] * len(PARAMS)
    sequences.take(leader())
    for tokens, answer, prompt_len in zip(sequences.tokens, answers, PROMPT_LENS, strict=True):
        assert tokens[: len(answer)] == answer[: len(tokens)]
        assert len(tokens) > prompt_len + 3


def test_some_sequences_of_a_round_may_go_on_in_any_order(
    checkpoint: Path, answers: list[list[int]], device: str
) -> None:
    """The others are over; and the next round is one by itself again."""
    sequences = Sequences(checkpoint, device)
    leader = sequences.begin([()] * len(PARAMS))
    behind = sequences.begin_following([0] * len(PARAMS), [2, 0])
    sequences.take(leader())
    third, first = behind()
    sequences.take([first, [], third])
    expected = [answers[i][: len(tokens)] for i, tokens in enumerate(sequences.tokens)]
    assert sequences.tokens == expected
    (again, *_) = sequences.begin([()] * len(PARAMS))()
    assert again == answers[0][PROMPT_LENS[0] + 2 :][:1]


def test_unusable_logits_end_in_no_token(checkpoint: Path, device: str) -> None:
    """A sequence without a next token takes part in the round behind, and harms nobody."""
    sequences = Sequences(checkpoint, device)
    keys, _ = sequences.runner._cache.layers[0]
    keys[sequences.tables[1][0]] = float("nan")
    leader = sequences.begin([()] * len(PARAMS))
    behind = sequences.begin_following([0] * len(PARAMS), range(len(PARAMS)))
    assert [len(tokens) for tokens in leader()] == [1, 0, 1]
    assert [len(tokens) for tokens in behind()] == [1, 0, 1]


def test_warming_up_leaves_no_trace(checkpoint: Path, device: str) -> None:
    """The cache is empty."""
    runner = load(checkpoint, device)
    sampler = GpuSampler(max_rows=4, vocab_size=runner.config.vocab_size, device=device)
    ready_follower(runner, sampler)
    assert not any(bool(torch.any(cache)) for layer in runner._cache.layers for cache in layer)
