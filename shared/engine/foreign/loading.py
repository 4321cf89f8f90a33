"""From a Hugging Face directory to a module of transformers that attends as we say."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from shared.common.errors import ConfigError
from shared.engine.cache import PagedCache
from shared.engine.fields import Fields
from shared.engine.foreign.config import (
    ForeignConfig,
    eos_token_ids,
    max_model_len,
    refuse_unsupported,
)
from shared.engine.foreign.decoder import ForeignDecoder
from shared.engine.foreign.interface import EAGER, SERVING
from shared.engine.foreign.probe import probe
from shared.engine.foreign.survey import survey
from shared.engine.runner import ModelRunner

AUTO_MODEL: Any = AutoModelForCausalLM  # transformers' own annotations are not strict
LOGGING: Any = logging


def load_foreign(
    directory: Path, *, num_blocks: int, block_size: int
) -> tuple[ForeignConfig, ModelRunner]:
    """Load a model onto the CPU, in float32, and prove that it computes what it should.

    Returns:
        What the model is, and the model.

    Raises:
        ConfigError: the directory does not hold a model that can be served.
    """
    model = read_model(directory, torch.float32)
    config = foreign_config(model, directory)
    cache = PagedCache(config, num_blocks=num_blocks, block_size=block_size)
    runner = ModelRunner(config, ForeignDecoder(config, model, cache), cache)
    probe(
        model,
        runner,
        config,
        num_blocks=num_blocks,
        block_size=block_size,
    )
    return config, runner


def read_model(directory: Path, dtype: torch.dtype) -> Any:  # noqa: ANN401  # transformers' own
    """The module, on the CPU, from `config.json` and safetensors alone.

    Raises:
        ConfigError: the directory does not hold a model of a supported kind, whole.
    """
    if not directory.is_dir():
        raise ConfigError(f"{directory}: no such directory; allowed: a Hugging Face model")
    refuse_unsupported(directory, Fields.read(directory / "config.json"))
    LOGGING.disable_progress_bar()
    try:
        model, report = AUTO_MODEL.from_pretrained(
            directory,
            dtype=dtype,
            attn_implementation=EAGER,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except Exception as error:  # code of any model may fail in any way
        raise ConfigError(f"{directory}: transformers cannot load it ({error})") from error
    for kind in ("missing", "unexpected", "mismatched"):
        if names := sorted(map(str, report[f"{kind}_keys"])):
            raise ConfigError(f"{directory}: {kind} tensor {names[0]} ({len(names)} in all)")
    return model.eval()


def foreign_config(
    model: Any,  # noqa: ANN401  # transformers' own
    directory: Path,
    head_dims: tuple[int, ...] = (),
) -> ForeignConfig:
    """What the engine needs to know; the model attends through our function afterwards.

    Args:
        model: from `read_model`, on any device.
        directory: where it comes from.
        head_dims: what a device's attention can read; none: anything.

    Raises:
        ConfigError: the model needs what our attention has not.
    """
    path = directory / "config.json"
    text_config = model.config.get_text_config(decoder=True)
    length = max_model_len(text_config, path)
    layers = survey(model, length)
    model.set_attn_implementation(SERVING)
    widest = max(layers[0].key_dim, layers[0].value_dim)
    head_dim = next((dim for dim in head_dims or (widest,) if dim >= widest), None)
    if head_dim is None:
        raise ConfigError(f"{path}: heads have {widest} numbers; allowed: {max(head_dims)} at most")
    return ForeignConfig(
        model_type=model.config.model_type,
        layers=layers,
        head_dim=head_dim,
        vocab_size=text_config.vocab_size,
        max_model_len=length,
        eos_token_ids=eos_token_ids(model, text_config, path),
    )
