"""draft_worker/equipment.py: from settings to a drafter."""

import subprocess
import sys
from pathlib import Path

import pytest

from draft_worker.config import Config, DrafterKind
from draft_worker.equipment import equip, model_settings
from draft_worker.model_drafter import ModelDrafter
from draft_worker.ngram_drafter import NgramDrafter
from shared.common.errors import ConfigError
from shared.engine.config import ModelConfig
from shared.engine.gpu.loading import memory_plan, num_blocks_of
from shared.engine.gpu.memory import GIB
from tests.draft_worker.builders import make_request
from tests.tiny_models import save_llama


def test_a_model_drafter_is_ready_to_guess(tmp_path: Path) -> None:
    """Loaded, warmed up, empty."""
    equipment = equip(Config(model=str(save_llama(tmp_path / "tiny")), num_blocks=32))
    drafter = equipment.drafter
    assert isinstance(drafter, ModelDrafter)
    assert (equipment.name, equipment.max_model_len, equipment.vocab_size) == ("tiny", 512, 320)
    assert len(equipment.vocabulary or "") == 64
    assert (drafter.usage, drafter.sessions) == (0.0, {})
    assert drafter.open(make_request())
    assert drafter.step()


def test_the_n_gram_drafter_takes_a_vocabulary_or_any(tmp_path: Path) -> None:
    """With a model directory it serves that vocabulary alone."""
    free = equip(Config(drafter=DrafterKind.NGRAM))
    bound = equip(Config(drafter=DrafterKind.NGRAM, model=str(save_llama(tmp_path / "tiny"))))
    assert isinstance(free.drafter, NgramDrafter)
    assert free.vocabulary is None
    assert bound.vocabulary is not None


@pytest.mark.parametrize("model", [None, "/nowhere"], ids=["missing", "absent"])
def test_a_model_that_is_not_there_is_the_operators_fault(model: str | None) -> None:
    """Said by name, before anything is connected."""
    with pytest.raises(ConfigError, match="model"):
        equip(Config(model=model))


def test_the_n_gram_drafter_starts_without_torch() -> None:
    """A machine without torch can run it."""
    program = (
        "import sys; from draft_worker.__main__ import main; "
        "from draft_worker.config import Config, DrafterKind; "
        "from draft_worker.equipment import equip; "
        "equip(Config(drafter=DrafterKind.NGRAM)); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@pytest.mark.parametrize(
    ("sizes", "max_sequences"),
    [
        ({}, 96),
        ({"max_num_rows": 1_024, "max_num_seqs": 4_096}, 1_024),
        ({"max_num_rows": 1, "max_num_seqs": 1, "max_num_batched_tokens": 32}, 2),
        ({"max_num_batched_tokens": 65_536, "num_blocks": 2, "block_size": 256}, 96),
    ],
)
def test_any_sizes_fit_a_gpus_rounds(
    sizes: dict[str, int], max_sequences: int, tmp_path: Path
) -> None:
    """What the flags allow, the kernels can run; the cache has as many blocks as were asked for."""
    config = Config(device="cuda", **sizes)  # type: ignore[arg-type]  # all of them are numbers
    settings = model_settings(config)
    shape = ModelConfig.from_directory(save_llama(tmp_path / "tiny", hidden_size=128))
    plan = memory_plan(shape, settings, 80 * GIB)
    assert num_blocks_of(plan, settings) == config.num_blocks
    assert plan.max_sequences == max_sequences
    assert plan.max_rows == config.max_num_batched_tokens
