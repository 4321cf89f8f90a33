"""What the engine knows of a model that transformers computes, and what is refused unread.

`config.json` is looked at here before transformers sees it: nothing of a directory is run, and what
no path can serve is named. What the layers do is asked of the model itself (`survey`).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from kernels.head_layout import HeadLayout
from shared.common.errors import ConfigError
from shared.engine.checkpoint import INDEX_FILE, SINGLE_FILE
from shared.engine.fields import Fields


@dataclass(frozen=True, slots=True)
class LayerAttention:
    """How one layer attends: the arguments it calls its attention function with."""

    num_heads: int
    num_kv_heads: int
    key_dim: int  # of a query head and a key head
    value_dim: int
    scale: float  # of the products of queries and keys
    window: int | None  # tokens that a row sees, itself included
    soft_cap: float | None  # bound on the scaled products


@dataclass(frozen=True, slots=True)
class ForeignConfig:
    """One model's limits and layers. Where a name is in `ModelConfig` too, it means the same."""

    model_type: str
    layers: tuple[LayerAttention, ...]
    head_dim: int  # of the cache: at least that of keys and of values, the rest zeros
    vocab_size: int
    max_model_len: int  # tokens, prompt and output together
    eos_token_ids: tuple[int, ...]

    @property
    def layout(self) -> HeadLayout:
        """The heads of every layer, as the kernels see them."""
        return HeadLayout(self.layers[0].num_heads, self.num_kv_heads, self.head_dim)

    @property
    def num_layers(self) -> int:
        """Layers with keys and values."""
        return len(self.layers)

    @property
    def num_kv_heads(self) -> int:
        """The same in every layer."""
        return self.layers[0].num_kv_heads

    @property
    def windows(self) -> tuple[int | None, ...]:
        """Of the layers."""
        return tuple(layer.window for layer in self.layers)


def refuse_unsupported(directory: Path, fields: Fields) -> None:
    """Refuse what can be told from `config.json` and the names of files.

    Raises:
        ConfigError: the model brings code, has no weights but pickled ones, is quantised, has an
            encoder, or is no causal language model that transformers knows.
    """
    model_type = fields.values.get("model_type")
    if fields.is_set("auto_map"):
        raise ConfigError(
            f"{fields.path}: auto_map names code of the model's own, which is never run; allowed: "
            f"none (without it transformers' own {model_type} is taken, if there is one)"
        )
    if not isinstance(model_type, str) or model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise fields.wrong("model_type", "a causal language model that transformers knows")
    if fields.is_set("quantization_config"):
        raise fields.wrong("quantization_config", "none; the weights must not be quantised")
    for key in ("is_encoder_decoder", "add_cross_attention"):
        if fields.flag(key, default=False):
            raise fields.wrong(key, "false; only decoders are served")
    if not any((directory / name).is_file() for name in (SINGLE_FILE, INDEX_FILE)):
        others = sorted(path.name for path in directory.glob("*.bin"))
        found = f"; found {others[0]}, which can run code when opened" if others else ""
        raise ConfigError(f"{directory}: no {SINGLE_FILE} or {INDEX_FILE}{found}")


def max_model_len(text_config: Any, path: Path) -> int:  # noqa: ANN401  # transformers' own
    """The longest context in which a token's rotation depends on its own position alone.

    LongRoPE takes other frequencies for all tokens once one is beyond the original length: cached
    keys and other sequences of the round would be rotated with the wrong ones.

    Raises:
        ConfigError: the configuration has no limit.
    """
    limit = getattr(text_config, "max_position_embeddings", None)
    if not isinstance(limit, int) or limit < 1:
        raise ConfigError(f"{path}: max_position_embeddings is {limit!r}: must be at least 1")
    ropes = getattr(text_config, "rope_parameters", None) or {}
    for rope in (ropes, *(value for value in ropes.values() if isinstance(value, dict))):
        if rope.get("rope_type") == "longrope":
            limit = min(limit, rope["original_max_position_embeddings"])
    return limit


def eos_token_ids(
    model: Any,  # noqa: ANN401  # transformers' own
    text_config: Any,  # noqa: ANN401
    path: Path,
) -> tuple[int, ...]:
    """Of `generation_config.json` where it names some, else of `config.json`.

    Raises:
        ConfigError: one of them is no token id.
    """
    value = getattr(model.generation_config, "eos_token_id", None)
    value = text_config.eos_token_id if value is None else value
    token_ids = value if isinstance(value, list) else [] if value is None else [value]
    for token_id in token_ids:
        if not isinstance(token_id, int) or not 0 <= token_id < text_config.vocab_size:
            allowed = f"token ids from 0 to {text_config.vocab_size - 1}"
            raise ConfigError(f"{path}: eos_token_id is {value!r}; allowed: {allowed}")
    return tuple(dict.fromkeys(token_ids))
