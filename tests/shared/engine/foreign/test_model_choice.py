"""Which code computes a model: `shared.engine.models` chooses by its architecture."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import structlog
import torch

from shared.common.errors import ConfigError
from shared.config.model import CacheDtype
from shared.engine.models import load_model
from shared.engine.spans import Span
from tests.checkpoints import CONFIGS, MAX_LEN, expected_logits, random_tokens, save_checkpoint
from tests.settings import CPU_SETTINGS
from tests.shared.engine.foreign.architectures import foreign

ROOT = Path(__file__).parents[4]


@pytest.mark.parametrize(("name", "path"), [("qwen3", "own"), ("gemma2", "transformers")])
def test_what_we_do_not_know_transformers_computes(name: str, path: str, tmp_path: Path) -> None:
    """To a worker both are alike; one event says which it was."""
    config = CONFIGS[name] if name in CONFIGS else foreign(name)
    model = save_checkpoint(tmp_path, config)
    with structlog.testing.capture_logs() as logs:
        loaded = load_model(tmp_path, CPU_SETTINGS)
    assert [log for log in logs if log["event"] == "model_loaded"] == [
        {"event": "model_loaded", "log_level": "info", "path": path, "num_blocks": 16}
    ]
    assert (loaded.config.vocab_size, loaded.config.max_model_len) == (97, MAX_LEN)
    assert loaded.config.eos_token_ids == (2,)
    assert loaded.num_blocks == 16
    tokens = random_tokens(20)
    logits = loaded.runner.run([Span(tokens, 0, [3, 1], 20)])
    torch.testing.assert_close(logits, expected_logits(model, tokens), atol=1e-5, rtol=0)


@pytest.mark.parametrize("model_type", ['"x"', "[1]", "null"])
def test_an_unknown_architecture_is_refused(model_type: str, tmp_path: Path) -> None:
    """By name."""
    (tmp_path / "config.json").write_text(f'{{"model_type": {model_type}}}')
    with pytest.raises(ConfigError, match=r"model_type is .*; allowed: a causal"):
        load_model(tmp_path, CPU_SETTINGS)


def test_a_cache_of_eight_bits_is_refused_on_a_cpu(tmp_path: Path) -> None:
    """By the flag's name, whatever the model."""
    save_checkpoint(tmp_path, CONFIGS["llama"])
    settings = dataclasses.replace(CPU_SETTINGS, cache_dtype=CacheDtype.FP8)
    with pytest.raises(ConfigError, match="--kv-cache-dtype is fp8: must be auto on a CPU"):
        load_model(tmp_path, settings)


def test_our_own_decoder_starts_without_transformers(tmp_path: Path) -> None:
    """Importing it takes a second; so does nothing that a worker of ours needs."""
    save_checkpoint(tmp_path, CONFIGS["llama"])
    code = (
        "import sys\n"
        "sys.modules['transformers'] = sys.modules['triton'] = None\n"
        "from pathlib import Path\n"
        "from shared.config.model import Dtype\n"
        "from shared.engine.models import load_model\n"
        "from shared.engine.settings import ModelSettings\n"
        f"settings = ModelSettings('cpu', Dtype.AUTO, 16, 256, 0, 64, 4, 0.9, False, 1)\n"
        f"load_model(Path({str(tmp_path)!r}), settings)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
