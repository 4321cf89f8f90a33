"""Asks a model how its layers attend, with one short pass whose attention is not computed.

The masks that a model asks transformers for are taken at their word: each is a function of two
positions, which is looked at over the whole context without being written out. Hence a window of
4,096 tokens is found, and a chunked mask refused, in a pass of 8 tokens.
"""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from shared.common.errors import ConfigError
from shared.engine.foreign.config import LayerAttention
from shared.engine.foreign.interface import (
    SURVEY,
    AttentionCall,
    MaskShape,
    attending,
    logits_of,
)

NUM_TOKENS = 8
NUM_PARTS = 7  # of a context, at whose ends masks are looked at
# Options that are understood, or that say nothing about the result.
KNOWN_OPTIONS = {"scaling", "softcap", "sliding_window", "position_ids", "position_embeddings"}


@torch.inference_mode()
def survey(model: Any, max_model_len: int) -> tuple[LayerAttention, ...]:  # noqa: ANN401  # transformers' own
    """How every layer attends.

    Args:
        model: a causal language model of transformers.
        max_model_len: tokens, up to which masks are looked at.

    Raises:
        ConfigError: the model needs something that our attention or cache has not.
    """
    name = type(model).__name__
    if getattr(model, "_is_stateful", False):
        raise ConfigError(f"{name}: its layers keep a state besides keys and values")
    parameters = inspect.signature(model.forward).parameters
    for parameter in ("position_ids", "logits_to_keep"):
        if parameter not in parameters:
            raise ConfigError(f"{name}: its forward pass takes no {parameter}")
    text_config = model.config.get_text_config(decoder=True)
    calls = _Calls(name, max_model_len)
    token_ids = torch.arange(min(NUM_TOKENS, max_model_len), device=model.device)
    model.set_attn_implementation(SURVEY)
    if text_config._attn_implementation != SURVEY:  # noqa: SLF001  # it has no other name
        raise ConfigError(f"{name}: its attention cannot be replaced through transformers")
    try:
        with attending(calls):
            logits_of(model, token_ids, token_ids, None)
    except ConfigError:
        raise
    except Exception as error:  # code of any model may fail in any way
        raise ConfigError(f"{name}: cannot run with another attention ({error})") from error
    return _uniform(name, calls.layers, text_config)


def _uniform(
    name: str,
    layers: Mapping[int, LayerAttention],
    text_config: Any,  # noqa: ANN401  # transformers' own
) -> tuple[LayerAttention, ...]:
    """All layers in order, if they all attend, and with the same heads."""
    num_layers = text_config.num_hidden_layers
    if sorted(layers) != list(range(num_layers)):
        kinds = getattr(text_config, "layer_types", None) or ["of another kind"] * num_layers
        others = {kinds[index] for index in range(num_layers) if index not in layers}
        raise ConfigError(
            f"{name}: {len(layers)} of {num_layers} layers attend through transformers' "
            f"interface; the others are {', '.join(sorted(others)) or 'more than there are'}"
        )
    heads = {(layer.num_heads, layer.num_kv_heads) for layer in layers.values()}
    dims = {(layer.key_dim, layer.value_dim) for layer in layers.values()}
    if len(heads) > 1 or len(dims) > 1:
        raise ConfigError(f"{name}: its layers differ in heads, {sorted(heads)}, {sorted(dims)}")
    return tuple(layers[index] for index in range(num_layers))


class _Calls:
    """Listens to one pass."""

    def __init__(self, name: str, max_model_len: int) -> None:
        self.layers: dict[int, LayerAttention] = {}
        self._name = name
        self._max_model_len = max_model_len
        self._windows: dict[MaskShape, int | None] = {}  # most layers share theirs

    def __call__(self, call: AttentionCall) -> Tensor:
        """Note what is asked for; zeros."""
        if call.layer in self.layers:
            raise ConfigError(f"{self._name}: layer {call.layer} attends more than once")
        num_heads, num_tokens, key_dim = call.queries.shape
        num_kv_heads, num_keys, value_dim = call.values.shape
        if num_keys != num_tokens or num_heads % num_kv_heads:
            raise ConfigError(f"{self._name}: layer {call.layer} attends to other tokens or heads")
        scale, soft_cap = self._checked_options(call.options)
        self.layers[call.layer] = LayerAttention(
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            key_dim=key_dim,
            value_dim=value_dim,
            scale=scale or key_dim**-0.5,
            window=self._window(call.mask),
            soft_cap=soft_cap or None,
        )
        return call.queries.new_zeros(num_tokens, num_heads, value_dim)

    def _checked_options(self, options: Mapping[str, object]) -> tuple[float | None, float | None]:
        """Scale and soft cap, if there are any; everything else must mean nothing."""
        if options.get("s_aux") is not None:
            raise ConfigError(f"{self._name}: attention sinks (s_aux) are not supported")
        if options.get("is_causal") is False:
            raise ConfigError(f"{self._name}: its attention is not causal")
        for key, value in options.items():
            means_nothing = value is None or isinstance(value, bool | str)
            is_zero = isinstance(value, int | float) and value == 0  # as dropout is
            if key not in KNOWN_OPTIONS and not means_nothing and not is_zero:
                raise ConfigError(f"{self._name}: attention with {key} is not supported")
        return self._number(options, "scaling"), self._number(options, "softcap")

    def _number(self, options: Mapping[str, object], key: str) -> float | None:
        value = options.get(key)
        if value is not None and not isinstance(value, int | float):
            raise ConfigError(f"{self._name}: {key} of attention must be a number")
        return value

    def _window(self, mask: object) -> int | None:
        if not isinstance(mask, MaskShape):
            raise ConfigError(f"{self._name}: its masks are not those of transformers' interface")
        if mask not in self._windows:
            self._windows[mask] = self._window_of(mask)
        return self._windows[mask]

    def _window_of(self, mask: MaskShape) -> int | None:
        """How many tokens back a token sees; None for all, if there are no more in a context."""
        tokens = torch.arange(self._max_model_len, device=mask.device)
        zero, last = tokens[0], self._max_model_len - 1
        # Neighbours see equally many through a window, and never through chunks.
        positions = [max(0, last - 1), *(last * part // NUM_PARTS for part in range(NUM_PARTS + 1))]
        seen = [mask.function(zero, zero, tokens[at], tokens).expand_as(tokens) for at in positions]
        window = int(seen[-1].sum())
        for position, is_visible in zip(positions, seen, strict=True):
            expected = (tokens <= position) & (tokens > position - window)
            if not torch.equal(is_visible, expected):
                raise ConfigError(f"{self._name}: its masks are neither causal nor sliding windows")
        return None if window == self._max_model_len else window
