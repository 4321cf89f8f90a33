"""What the kernels ask of a model and of settings: looked at before anything is loaded."""

from kernels.gpu.invariant_linear import ROW_ALIGNMENT
from kernels.gpu.rms_norm import MAX_DIM
from shared.common.errors import ConfigError
from shared.engine.config import ModelConfig
from shared.engine.fields import Fields
from shared.engine.settings import MAX_GPU_SEQUENCES, ModelSettings

BLOCK_SIZES = (16, 32, 64, 128, 256)  # what attention reads
HEAD_DIMS = (32, 64, 96, 128, 256)  # the same
MAX_GROUP_SIZE = 16  # query heads a key head: they share a tile, and so many fit the smallest


def check_settings(settings: ModelSettings) -> None:
    """Refuse settings that no model can be run with.

    Raises:
        ConfigError: naming the flag.
    """
    if settings.block_size not in BLOCK_SIZES:
        raise ConfigError(
            f"--block-size is {settings.block_size}: must be {_listed(BLOCK_SIZES)} on a GPU"
        )
    if settings.max_sequences > MAX_GPU_SEQUENCES:
        raise ConfigError(
            f"--max-num-seqs is {settings.max_sequences}: "
            f"must be at most {MAX_GPU_SEQUENCES} on a GPU"
        )


def check_model(config: ModelConfig, settings: ModelSettings) -> None:
    """Refuse what our own decoder cannot run.

    Raises:
        ConfigError: naming the field of its configuration, or the flag.
    """
    if config.head_dim not in HEAD_DIMS:
        raise ConfigError(
            f"config.json: head_dim is {config.head_dim}; allowed on a GPU: {_listed(HEAD_DIMS)}"
        )
    check_group_size("config.json", config.num_heads, config.num_kv_heads)
    if config.hidden_size > MAX_DIM:
        raise ConfigError(
            f"config.json: hidden_size is {config.hidden_size}; allowed on a GPU: at most {MAX_DIM}"
        )
    sizes = {"hidden_size": config.hidden_size, "intermediate_size": config.intermediate_size}
    for name, size in sizes.items():
        if settings.is_batch_invariant and size % ROW_ALIGNMENT:
            raise ConfigError(
                f"config.json: {name} is {size}; allowed with --batch-invariant: "
                f"multiples of {ROW_ALIGNMENT}"
            )
    if settings.max_model_len > config.max_model_len:
        raise ConfigError(
            f"--max-model-len is {settings.max_model_len}: "
            f"must be at most the model's own, {config.max_model_len}"
        )


def check_stated_heads(fields: Fields) -> None:
    """Refuse a model of any architecture for the heads that its configuration states.

    Heads are padded to one of HEAD_DIMS there. What is not stated is asked of the model itself.

    Raises:
        ConfigError: naming the field.
    """
    of_text = fields.values.get("text_config")
    values = of_text if isinstance(of_text, dict) else fields.values
    head_dim, num_heads, num_kv_heads = (
        value if isinstance(value := values.get(key), int) and value > 0 else None
        for key in ("head_dim", "num_attention_heads", "num_key_value_heads")
    )
    if head_dim is not None and head_dim > max(HEAD_DIMS):
        raise ConfigError(
            f"{fields.path}: head_dim is {head_dim}; allowed on a GPU: at most {max(HEAD_DIMS)}"
        )
    if num_heads is not None and num_kv_heads is not None:
        check_group_size(fields.path, num_heads, num_kv_heads)


def check_group_size(model: object, num_heads: int, num_kv_heads: int) -> None:
    """Refuse more query heads a key head than a tile of attention has rows.

    Args:
        model: what leads the message: a name, or a path.
        num_heads: of queries.
        num_kv_heads: of keys.

    Raises:
        ConfigError: naming the fields.
    """
    group_size = num_heads // num_kv_heads
    if group_size > MAX_GROUP_SIZE:
        raise ConfigError(
            f"{model}: num_attention_heads is {num_heads} and num_key_value_heads is "
            f"{num_kv_heads}: {group_size} query heads a key head; "
            f"allowed on a GPU: at most {MAX_GROUP_SIZE}"
        )


def _listed(numbers: tuple[int, ...]) -> str:
    return ", ".join(map(str, numbers))
