"""What the decoder needs to know of a model, read from a Hugging Face directory.

Llama, Mistral, Qwen2 and Qwen3 are one decoder with switches. Whatever is not one of the switches
is refused here: a model that would run but be wrong is worse than one that does not start.
"""

from dataclasses import dataclass
from pathlib import Path

from kernels.head_layout import HeadLayout
from shared.common.errors import ConfigError
from shared.engine.fields import Fields
from shared.engine.rope import RopeConfig, rope_config

ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
DEFAULT_WINDOW = 4_096  # of configurations that leave it out (transformers' own default)


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """One model's shape and switches."""

    model_type: str
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_model_len: int  # tokens, prompt and output together
    rms_norm_eps: float
    rope: RopeConfig
    windows: tuple[int | None, ...]  # a layer: how many tokens back it sees, itself included
    eos_token_ids: tuple[int, ...]
    has_qkv_bias: bool
    has_output_bias: bool
    has_mlp_bias: bool
    has_qk_norm: bool
    is_embedding_tied: bool

    @property
    def layout(self) -> HeadLayout:
        """The heads, as the kernels see them."""
        return HeadLayout(self.num_heads, self.num_kv_heads, self.head_dim)

    @classmethod
    def from_directory(cls, directory: Path) -> "ModelConfig":
        """Read `config.json`, and the end tokens of `generation_config.json` where there is one.

        Raises:
            ConfigError: a file is missing or unreadable, or asks for what is not supported.
        """
        if not directory.is_dir():
            raise ConfigError(f"{directory}: no such directory; allowed: a Hugging Face model")
        fields = Fields.read(directory / "config.json")
        model_type = fields.choice("model_type", tuple(ARCHITECTURES))
        _refuse_unsupported(fields, model_type)
        num_heads = fields.count("num_attention_heads")
        num_kv_heads = fields.count("num_key_value_heads", num_heads)
        if num_heads % num_kv_heads:
            raise fields.wrong("num_key_value_heads", f"a divisor of {num_heads}")
        hidden_size, num_layers = fields.count("hidden_size"), fields.count("num_hidden_layers")
        head_dim = fields.count("head_dim", max(1, hidden_size // num_heads))
        if head_dim % 2:
            raise fields.wrong("head_dim", "an even number")
        vocab_size = fields.count("vocab_size")
        has_bias = model_type in ("llama", "qwen3") and fields.flag("attention_bias", default=False)
        return cls(
            model_type=model_type,
            hidden_size=hidden_size,
            intermediate_size=fields.count("intermediate_size"),
            num_layers=num_layers,
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            vocab_size=vocab_size,
            max_model_len=fields.count("max_position_embeddings"),
            rms_norm_eps=fields.number("rms_norm_eps", 1e-6),
            rope=rope_config(fields),
            windows=_windows(fields, model_type, num_layers),
            eos_token_ids=_eos_token_ids(directory, fields, vocab_size),
            has_qkv_bias=has_bias or model_type == "qwen2",
            has_output_bias=has_bias,
            has_mlp_bias=model_type == "llama" and fields.flag("mlp_bias", default=False),
            has_qk_norm=model_type == "qwen3",
            is_embedding_tied=fields.flag("tie_word_embeddings", default=False),
        )


def _refuse_unsupported(fields: Fields, model_type: str) -> None:
    fields.choice("hidden_act", ("silu",), default="silu")
    architecture = ARCHITECTURES[model_type]
    architectures = fields.values.get("architectures")
    if architectures is not None and architectures != [architecture]:
        raise fields.wrong("architectures", f"[{architecture!r}]")
    if fields.is_set("quantization_config"):
        raise fields.wrong("quantization_config", "none; the weights must not be quantised")


def _windows(fields: Fields, model_type: str, num_layers: int) -> tuple[int | None, ...]:
    """Mistral slides in every layer, Qwen in those it names."""
    if model_type == "llama":
        return (None,) * num_layers
    if model_type == "mistral":
        is_off = "sliding_window" in fields.values and not fields.is_set("sliding_window")
        window = None if is_off else fields.count("sliding_window", DEFAULT_WINDOW)
        return (window,) * num_layers
    if not fields.flag("use_sliding_window", default=False):
        return (None,) * num_layers
    window = fields.count("sliding_window", DEFAULT_WINDOW)
    layer_types = fields.values.get("layer_types")
    if layer_types is None:
        first = fields.values.get("max_window_layers", 28)
        if not isinstance(first, int) or isinstance(first, bool) or first < 0:
            raise fields.wrong("max_window_layers", "a whole number of at least 0")
        return tuple(window if layer >= first else None for layer in range(num_layers))
    kinds = {"full_attention": None, "sliding_attention": window}
    is_list = isinstance(layer_types, list) and len(layer_types) == num_layers
    if not is_list or not all(isinstance(kind, str) and kind in kinds for kind in layer_types):
        raise fields.wrong("layer_types", f"{num_layers} of {', '.join(kinds)}")
    return tuple(kinds[kind] for kind in layer_types)


def _eos_token_ids(directory: Path, fields: Fields, vocab_size: int) -> tuple[int, ...]:
    """`generation_config.json` knows best: chat models add their end-of-turn token there."""
    generation = directory / "generation_config.json"
    owners = [Fields.read(generation), fields] if generation.exists() else [fields]
    owner = next((owner for owner in owners if owner.is_set("eos_token_id")), None)
    if owner is None:
        return ()
    value = owner.values["eos_token_id"]
    token_ids = value if isinstance(value, list) else [value]
    for token_id in token_ids:
        is_id = isinstance(token_id, int) and not isinstance(token_id, bool)
        if not is_id or not 0 <= token_id < vocab_size:
            raise owner.wrong("eos_token_id", f"token ids from 0 to {vocab_size - 1}")
    return tuple(dict.fromkeys(token_ids))
