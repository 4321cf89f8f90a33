"""Settings and memory of a model that transformers computes on a GPU."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from shared.common.errors import ConfigError
from shared.config.model import CacheDtype
from shared.engine.foreign.config import ForeignConfig, LayerAttention
from shared.engine.foreign.gpu_loading import MeasuredPlan, load_foreign_on_gpu
from shared.engine.gpu.memory import GIB, LIBRARY_BYTES
from shared.engine.spans import Span
from tests.checkpoints import expected_logits, random_tokens, save_checkpoint
from tests.settings import GPU_SETTINGS
from tests.shared.engine.foreign.architectures import foreign
from tests.shared.engine.passes import no_progress

LAYER = LayerAttention(8, 2, 80, 80, 0.1, None, None)
CONFIG = ForeignConfig("x", (LAYER,) * 4, 96, 1_000, max_model_len=512, eos_token_ids=())
PLAN = MeasuredPlan(
    config=CONFIG,
    dtype=torch.bfloat16,
    cache_dtype=torch.bfloat16,
    total_bytes=4 * GIB,
    max_rows=64,
    max_sequences=4,
    max_model_len=512,
    block_size=16,
    measured_weight_bytes=GIB,
    measured_activation_bytes=100_000,
)


def test_what_was_measured_is_set_aside() -> None:
    """Weights as they are, a round twice (once in the graphs' pool); heads as wide as cached."""
    assert PLAN.weight_bytes == GIB
    assert PLAN.activation_bytes == 100_000
    assert PLAN.graph_bytes == 100_000 + 64 * 1_000 * 2
    assert PLAN.cache_bytes_per_token == 2 * 4 * 2 * 96 * 2
    used = GIB + 2 * 100_000 + 128_000 + LIBRARY_BYTES + PLAN.cache_bytes
    used += PLAN.partial_bytes(PLAN.num_blocks) + PLAN.sampler_bytes
    assert PLAN.usable_bytes - PLAN.cache_bytes_per_token * 32 < used <= PLAN.usable_bytes


def test_a_model_that_leaves_no_room_is_refused_with_the_plan() -> None:
    """Not even one sequence fits."""
    full = dataclasses.replace(PLAN, measured_weight_bytes=3 * GIB)
    with pytest.raises(ConfigError, match=r"one sequence of 512 tokens does not fit[^$]*weights"):
        full.check()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"is_batch_invariant": True}, "--batch-invariant is set: must be off"),
        ({"cache_dtype": CacheDtype.FP8}, "--kv-cache-dtype is fp8: must be auto for a model"),
        ({"block_size": 8}, "--block-size is 8: must be 16, 32, 64, 128, 256"),
        ({"max_sequences": 1_025}, "--max-num-seqs is 1025: must be at most 1024"),
    ],
)
def test_settings_that_cannot_be_had_are_refused(
    changes: dict[str, object], message: str, tmp_path: Path
) -> None:
    """Before anything is read."""
    settings = dataclasses.replace(GPU_SETTINGS, **changes)  # type: ignore[arg-type]  # one of several
    with pytest.raises(ConfigError, match=message):
        load_foreign_on_gpu(tmp_path, settings, no_progress)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"head_dim": 257}, "head_dim is 257; allowed on a GPU: at most 256"),
        (
            {"num_attention_heads": 34, "num_key_value_heads": 2},
            "num_attention_heads is 34 and num_key_value_heads is 2: 17 query heads a key head",
        ),
        (
            {"text_config": {"num_attention_heads": 17, "num_key_value_heads": 1}},
            "17 query heads a key head; allowed on a GPU: at most 16",
        ),
    ],
)
def test_heads_that_the_kernels_cannot_read_are_refused(
    values: dict[str, object], message: str, tmp_path: Path
) -> None:
    """As soon as the configuration says so: there are no weights here."""
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"model_type": "olmo2"} | values))
    with pytest.raises(ConfigError) as error:
        load_foreign_on_gpu(tmp_path, GPU_SETTINGS, no_progress)
    assert str(error.value).startswith(f"{path}: ")
    assert message in str(error.value)


@pytest.mark.gpu
@pytest.mark.parametrize("model_type", ["gemma2", "qwen2_moe"])
def test_a_model_is_loaded_and_captured(model_type: str, tmp_path: Path) -> None:
    """From a directory to the logits of transformers, decodes in graphs where it allows them."""
    model = save_checkpoint(tmp_path, foreign(model_type))
    config, runner, _, num_blocks = load_foreign_on_gpu(tmp_path, GPU_SETTINGS, no_progress)
    assert (config.head_dim, num_blocks) == (32, 64)
    tokens = random_tokens(40)
    runner.run([Span(tokens[:30], 0, [5, 3, 9], 0)])
    rows = [runner.run([Span([tokens[at]], at, [5, 3, 9], 1)]).cpu() for at in range(30, 40)]
    expected = expected_logits(model, tokens)[30:]
    torch.testing.assert_close(torch.cat(rows), expected, atol=2e-3, rtol=0)


@pytest.mark.gpu
def test_more_cache_than_fits_is_refused_with_the_plan(tmp_path: Path) -> None:
    """The operator sees what would fit."""
    save_checkpoint(tmp_path, foreign("gemma2"))
    settings = dataclasses.replace(GPU_SETTINGS, cache_tokens=10**12)
    with pytest.raises(
        ConfigError, match=r"--kv-cache-tokens asks for a cache of 10+ tokens: must be"
    ):
        load_foreign_on_gpu(tmp_path, settings, no_progress)
