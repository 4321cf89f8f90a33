"""A model is served only if our way through it gives its own logits."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from shared.common.errors import ConfigError
from shared.engine.foreign.config import ForeignConfig, LayerAttention
from shared.engine.foreign.loading import load_foreign
from shared.engine.foreign.probe import NUM_TOKENS, probe
from shared.engine.foreign.survey import survey
from shared.engine.spans import Span
from tests.checkpoints import save_checkpoint
from tests.shared.engine.foreign.architectures import foreign


class ChangedSurvey:
    """A survey that is mistaken about every layer."""

    def __init__(self, **changes: object) -> None:
        self._changes: dict[str, Any] = changes

    def __call__(self, model: object, max_model_len: int) -> tuple[LayerAttention, ...]:
        layers = survey(model, max_model_len)
        return tuple(dataclasses.replace(layer, **self._changes) for layer in layers)


@pytest.mark.parametrize(
    "changes", [{"scale": 0.9}, {"window": 8}, {"soft_cap": None}, {"soft_cap": 0.2}]
)
def test_a_wrong_idea_of_attention_is_found_out(
    changes: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scale, window and cap all show in the logits of two dozen tokens."""
    save_checkpoint(tmp_path, foreign("gemma2", initializer_range=0.3))
    load_foreign(tmp_path, num_blocks=8, block_size=16)
    monkeypatch.setattr("shared.engine.foreign.loading.survey", ChangedSurvey(**changes))
    with pytest.raises(ConfigError, match=r"Gemma2ForCausalLM in .*: logits differ by"):
        load_foreign(tmp_path, num_blocks=8, block_size=16)


def test_a_state_besides_keys_and_values_is_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hybrid that does not say so: right in one pass, wrong in the next."""
    sizes = {"mamba_d_ssm": 48, "mamba_n_heads": 6, "mamba_d_head": 8, "mamba_d_state": 8}
    model = save_checkpoint(tmp_path, foreign("falcon_h1", mamba_n_groups=1, **sizes))
    monkeypatch.setattr(type(model), "_is_stateful", False)
    with pytest.raises(ConfigError, match="FalconH1ForCausalLM in pieces: logits differ by"):
        load_foreign(tmp_path, num_blocks=8, block_size=16)


class Recorded:
    """A runner whose logits are given, and which remembers what it was asked."""

    def __init__(self, logits: Tensor) -> None:
        self._logits = logits
        self.passes: list[Sequence[Span]] = []

    def run(self, spans: Sequence[Span]) -> Tensor:
        self.passes.append(spans)
        return self._logits[: sum(span.num_logits for span in spans)]

    def copy_blocks(self, copies: Sequence[tuple[int, int]]) -> None:
        raise NotImplementedError


class Constant:
    """A model whose every logit is 1."""

    dtype = torch.float32
    device = torch.device("cpu")

    def __init__(self) -> None:
        self.implementation = ""

    def set_attn_implementation(self, name: str) -> None:
        self.implementation = name

    def __call__(self, input_ids: Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=torch.ones(*input_ids.shape, 7))


LAYER = LayerAttention(1, 1, 8, 8, 1.0, None, None)
CONFIG = ForeignConfig("x", (LAYER,), 8, vocab_size=7, max_model_len=64, eos_token_ids=())


def run_probe(
    runner: Recorded, *, num_blocks: int = 8, block_size: int = 16, config: ForeignConfig = CONFIG
) -> Constant:
    model = Constant()
    probe(model, runner, config, num_blocks=num_blocks, block_size=block_size)
    return model


def test_every_token_is_computed_in_one_pass_and_in_ragged_pieces() -> None:
    """Of two sequences, in blocks that belong to one of them each, no more than they need."""
    runner = Recorded(torch.ones(64, 7))
    assert run_probe(runner).implementation == "outrider"
    shapes = [[(span.start, len(span.token_ids)) for span in spans] for spans in runner.passes]
    assert shapes == [[(0, 24)], [(0, 12), (0, 1)], [(12, 1), (1, 12)], [(13, 11), (13, 11)]]
    assert [list(span.block_ids) for span in runner.passes[1]] == [[6, 4], [7, 5]]


def test_a_small_cache_gets_short_prompts() -> None:
    """A worker may be set to few blocks, of few tokens."""
    runner = Recorded(torch.ones(64, 7))
    run_probe(runner, num_blocks=2, block_size=5)
    assert max(len(span.token_ids) for spans in runner.passes for span in spans) == 5


@pytest.mark.parametrize(("num_blocks", "max_model_len"), [(1, 64), (2, 2)])
def test_what_is_too_small_to_tell_is_refused(num_blocks: int, max_model_len: int) -> None:
    """Two sequences, in three pieces each."""
    config = dataclasses.replace(CONFIG, max_model_len=max_model_len)
    with pytest.raises(ConfigError, match="must be at least 2 blocks and 3 tokens"):
        run_probe(Recorded(torch.ones(64, 7)), num_blocks=num_blocks, config=config)


@pytest.mark.parametrize("wrong", [1.01, float("nan"), float("inf")])
def test_one_wrong_logit_is_enough(wrong: float) -> None:
    """In any row; no number is wrong too."""
    logits = torch.ones(64, 7)
    logits[NUM_TOKENS - 1, 3] = wrong
    with pytest.raises(ConfigError, match="Constant in one pass: logits differ by"):
        run_probe(Recorded(logits))
