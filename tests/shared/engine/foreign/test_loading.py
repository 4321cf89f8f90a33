"""Models that transformers computes over our cache, against transformers alone."""

import copy
import functools
import json
from pathlib import Path

import pytest
import torch

from shared.common.errors import ConfigError
from shared.engine.foreign.config import ForeignConfig
from shared.engine.foreign.loading import foreign_config, load_foreign, read_model
from shared.engine.runner import ModelRunner
from shared.engine.spans import Span
from tests.checkpoints import CONFIGS, MAX_LEN, expected_logits, random_tokens, save_checkpoint
from tests.shared.engine.foreign.architectures import OPTIONS, foreign
from tests.shared.engine.passes import (
    BLOCK_SIZE,
    assert_close,
    check_fork,
    check_pieces,
    check_ragged,
)

ATOL = 1e-5
NUM_TABLES = 5


close = functools.partial(assert_close, atol=ATOL)


def load(directory: Path) -> tuple[ForeignConfig, ModelRunner]:
    num_blocks = NUM_TABLES * MAX_LEN // BLOCK_SIZE
    return load_foreign(directory, num_blocks=num_blocks, block_size=BLOCK_SIZE)


@pytest.mark.parametrize("model_type", OPTIONS)
def test_pieces_of_any_size_equal_one_pass(model_type: str, tmp_path: Path) -> None:
    """Chunks, decodes and verify rows give transformers' own logits, to the last token."""
    model = save_checkpoint(tmp_path, foreign(model_type))
    _, runner = load(tmp_path)
    check_pieces((runner, model, ATOL), (17, 1, 5, 30, 1, 1, 9, 64))


@pytest.mark.parametrize("model_type", OPTIONS)
def test_a_ragged_pass_equals_its_sequences_alone(model_type: str, tmp_path: Path) -> None:
    """Prefill chunks, decodes and verify rows of many sequences share a pass and do not mix."""
    model = save_checkpoint(tmp_path, foreign(model_type))
    _, runner = load(tmp_path)
    shapes = [(0, 33, 1), (40, 1, 1), (100, 5, 5), (64, 20, 0), (127, 1, 1)]
    check_ragged((runner, model, ATOL), shapes)


def test_a_llama_has_the_logits_of_our_own_decoder(tmp_path: Path) -> None:
    """Both paths are one model."""
    save_checkpoint(tmp_path, CONFIGS["llama-llama3-tied"])
    config, runner = load(tmp_path)
    own = ModelRunner.load(tmp_path, num_blocks=MAX_LEN // BLOCK_SIZE, block_size=BLOCK_SIZE)
    spans = [Span(random_tokens(60), 0, range(4), 60)]
    close(runner.run(spans), own.run(spans))
    for name in ("layout", "windows", "vocab_size", "max_model_len", "eos_token_ids"):
        assert getattr(config, name) == getattr(own.config, name)


def test_a_fork_goes_its_own_way(tmp_path: Path) -> None:
    """A branch shares full blocks, copies the partial one, and disturbs nobody."""
    model = save_checkpoint(tmp_path, foreign("gemma2"))
    _, runner = load(tmp_path)
    check_fork((runner, model, ATOL))


def test_16_bit_weights_are_computed_in_float32(tmp_path: Path) -> None:
    """As by our own decoder on a CPU."""
    model = save_checkpoint(tmp_path, foreign("olmo2"), dtype=torch.bfloat16)
    _, runner = load(tmp_path)
    tokens = random_tokens(20)
    logits = runner.run([Span(tokens, 0, [3, 1], 20)])
    assert logits.dtype == torch.float32
    close(logits, expected_logits(model, tokens))


def test_end_tokens_are_those_of_generation(tmp_path: Path) -> None:
    """Chat models add their end-of-turn token there."""
    save_checkpoint(tmp_path, foreign("olmo2"))
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [5, 2, 5]}')
    assert load(tmp_path)[0].eos_token_ids == (5, 2)


def test_a_device_may_ask_for_wider_heads(tmp_path: Path) -> None:
    """The least that it reads and that holds keys and values."""
    save_checkpoint(tmp_path, foreign("deepseek_v3"))
    model = read_model(tmp_path, torch.float32)
    assert foreign_config(model, tmp_path, (12, 24, 48)).head_dim == 24
    with pytest.raises(ConfigError, match="heads have 16 numbers; allowed: 12 at most"):
        foreign_config(model, tmp_path, (8, 12))


def test_shards_are_one_model(tmp_path: Path) -> None:
    """A checkpoint of many files is read whole."""
    model = save_checkpoint(tmp_path, foreign("stablelm"), max_shard_size="40KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    tokens = random_tokens(20)
    logits = load(tmp_path)[1].run([Span(tokens, 0, [3, 1], 20)])
    close(logits, expected_logits(model, tokens))


def test_a_checkpoint_that_is_not_whole_is_refused(tmp_path: Path) -> None:
    """transformers would fill gaps with random numbers, and drop what it does not know."""
    save_checkpoint(tmp_path, foreign("olmo2"))
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    for num_layers, kind in ((4, "missing"), (2, "unexpected")):
        changed = copy.deepcopy(config) | {"num_hidden_layers": num_layers}
        path.write_text(json.dumps(changed))
        with pytest.raises(ConfigError, match=f"{kind} tensor model.layers"):
            load(tmp_path)


def test_a_broken_file_is_the_operators_affair(tmp_path: Path) -> None:
    """Whatever transformers raises, the message names the directory."""
    save_checkpoint(tmp_path, foreign("olmo2"))
    (tmp_path / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(ConfigError, match="transformers cannot load it"):
        load(tmp_path)
    with pytest.raises(ConfigError, match="no such directory"):
        load(tmp_path / "none")
