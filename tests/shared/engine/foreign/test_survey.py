"""What a model's layers ask of attention, and which of them cannot be had."""

from functools import partial
from typing import Any

import pytest
import torch

from shared.common.errors import ConfigError
from shared.engine.foreign.config import LayerAttention
from shared.engine.foreign.interface import SURVEY
from shared.engine.foreign.survey import survey
from tests.checkpoints import AUTO_MODEL, MAX_LEN
from tests.shared.engine.foreign.architectures import WINDOW, foreign


def build(model_type: str, **options: object) -> Any:  # noqa: ANN401  # transformers' own
    """A random model, never saved."""
    config = foreign(model_type, **options)
    return AUTO_MODEL.from_config(config, attn_implementation="eager").eval()


def test_every_layer_is_described() -> None:
    """Heads, scale, window and cap, as the model calls for them."""
    first, second, third = survey(build("gemma2"), MAX_LEN)
    assert first == third == LayerAttention(6, 2, 16, 16, 8**-0.5, WINDOW, 0.05)
    assert second == LayerAttention(6, 2, 16, 16, 8**-0.5, None, 0.05)


def test_windows_are_read_from_masks() -> None:
    """Qwen2-MoE names its window nowhere else."""
    windows = [layer.window for layer in survey(build("qwen2_moe"), MAX_LEN)]
    assert windows == [WINDOW, None, WINDOW]


@pytest.mark.parametrize("window", [1, 7, 63, 4_096])
def test_a_window_beyond_the_pass_is_found(window: int) -> None:
    """Masks are looked at over the whole context."""
    layers = survey(build("phi3", sliding_window=window), 10_007)
    assert {layer.window for layer in layers} == {window}


def test_a_window_as_long_as_the_context_is_none() -> None:
    """It hides nothing."""
    layers = survey(build("phi3", sliding_window=MAX_LEN), MAX_LEN)
    assert {layer.window for layer in layers} == {None}


@pytest.mark.parametrize(
    ("model_type", "options", "message"),
    [
        ("mamba", {}, "MambaForCausalLM: its layers keep a state besides keys and values"),
        ("lfm2", {"layer_types": ["conv", "full_attention", "conv"]}, "1 of 3 layers .* are conv"),
        ("bloom", {}, "its forward pass takes no position_ids"),
        ("gptj", {"n_positions": MAX_LEN, "rotary_dim": 4}, "cannot be replaced"),
        ("gpt_oss", {"num_local_experts": 4, "head_dim": 8}, "sinks"),
        ("llama4_text", {"attention_chunk_size": 16, "head_dim": 8}, "neither causal nor sliding"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_what_cannot_be_served_is_named(
    model_type: str, options: dict[str, object], message: str
) -> None:
    """States, convolutions, biases by distance, own attention, sinks, chunks."""
    with pytest.raises(ConfigError, match=message):
        survey(build(model_type, **options), MAX_LEN)


@pytest.mark.parametrize("max_model_len", [112, 113, 1_009])
def test_chunks_are_no_windows_wherever_they_begin(max_model_len: int) -> None:
    """A token sees fewer the nearer it is to the begin of its chunk."""
    model = build("llama4_text", attention_chunk_size=16, head_dim=8)
    with pytest.raises(ConfigError, match="neither causal nor sliding"):
        survey(model, max_model_len)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("position_bias", torch.zeros(1), "attention with position_bias is not supported"),
        ("is_causal", False, "its attention is not causal"),
        ("attention_mask", torch.zeros(1, 1, 8, 8), "its masks are not those"),
        ("beta", 0.5, "attention with beta is not supported"),
    ],
)
def test_an_unknown_option_of_attention_is_refused(
    option: str, value: object, message: str
) -> None:
    """What is not understood may change the result."""
    model = build("olmo2")
    model.forward = partial(model.forward, **{option: value})
    with pytest.raises(ConfigError, match=message):
        survey(model, MAX_LEN)


def test_options_that_change_nothing_are_taken() -> None:
    """Flags and zeros that models hand down."""
    model = build("olmo2")
    model.forward = partial(model.forward, output_attentions=False, dropout_of_cache=0.0)
    assert len(survey(model, MAX_LEN)) == 3


def test_a_learned_scale_is_refused() -> None:
    """A kernel takes a number."""
    model = build("olmo2")
    model.model.layers[1].self_attn.scaling = torch.ones(6, 1, 1)
    with pytest.raises(ConfigError, match="scaling of attention must be a number"):
        survey(model, MAX_LEN)


def test_layers_of_different_heads_are_refused() -> None:
    """The cache and the plans of a pass have one layout."""
    model, other = build("olmo2"), build("olmo2", num_key_value_heads=3)
    other.set_attn_implementation(SURVEY)
    model.model.layers[1].self_attn = other.model.layers[1].self_attn
    with pytest.raises(ConfigError, match=r"its layers differ in heads, \[\(6, 2\), \(6, 3\)\]"):
        survey(model, MAX_LEN)


def test_a_layer_that_attends_twice_is_refused() -> None:
    """Its second keys would overwrite its first in the cache."""
    model = build("olmo2")
    model.model.layers[1].self_attn.layer_idx = 0
    with pytest.raises(ConfigError, match="layer 0 attends more than once"):
        survey(model, MAX_LEN)
