"""The decoder against transformers, on whole sequences and every supported kind of checkpoint."""

from pathlib import Path

import pytest
import torch

from shared.engine.runner import ModelRunner
from shared.engine.spans import Span
from tests.checkpoints import CONFIGS, MAX_LEN, expected_logits, random_tokens, save_checkpoint


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", CONFIGS)
def test_logits_equal_those_of_transformers(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """A full context in one pass gives the logits of transformers in float32, within 1e-4."""
    model = save_checkpoint(tmp_path, CONFIGS[name], dtype=dtype)
    runner = ModelRunner.load(tmp_path, num_blocks=MAX_LEN // 16, block_size=16)
    token_ids = random_tokens(MAX_LEN)
    span = Span(token_ids, start=0, block_ids=range(MAX_LEN // 16), num_logits=MAX_LEN)
    logits = runner.run([span])
    expected = expected_logits(model, token_ids)
    assert expected.abs().max() > 0.5
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("num_logits", [0, 1, 5])
def test_only_rows_asked_for_reach_the_output(num_logits: int, tmp_path: Path) -> None:
    """The last rows come out as in a pass that asks for all; the cache is written anyway."""
    model = save_checkpoint(tmp_path, CONFIGS["llama"])
    runner = ModelRunner.load(tmp_path, num_blocks=4, block_size=16)
    token_ids = random_tokens(41)
    expected = expected_logits(model, token_ids)
    logits = runner.run([Span(token_ids[:40], 0, range(4), num_logits)])
    torch.testing.assert_close(logits, expected[40 - num_logits : 40], atol=1e-5, rtol=0)
    assert logits.shape == (num_logits, len(expected[0]))
    step = runner.run([Span(token_ids[40:], 40, range(4), 1)])
    torch.testing.assert_close(step, expected[40:], atol=1e-5, rtol=0)
