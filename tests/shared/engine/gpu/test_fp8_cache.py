"""A cache of 8 bits: what every row sees is what the cache keeps, however a sequence is cut."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask
from transformers.models.llama.modeling_llama import eager_attention_forward

from kernels.gpu.rotary_kv_write import FP8, cached
from shared.engine.gpu.limits import GpuLimits
from shared.engine.gpu.runner import GpuRunner
from shared.engine.spans import Span
from tests.checkpoints import expected_logits, random_tokens, save_checkpoint
from tests.shared.engine.gpu.runners import LIMITS, ROWS_OF_NOBODY, load, on_gpus
from tests.shared.engine.passes import assert_close, block_tables

pytestmark = ROWS_OF_NOBODY

ROUNDED = "outrider_fp8_cache"
INVARIANT = dataclasses.replace(LIMITS, is_batch_invariant=True)
# Rounding changes logits by some 0.04. A number whose last bits of float32 decide between two
# neighbours of 8 bits may become the other one here: that is 0.0001.
TOLERANCE, EFFECT = 1e-3, 1e-2


def _attend_to_rounded(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: object, **options: object
) -> tuple[Tensor, Tensor]:
    """transformers' own attention, to keys and values as a cache of 8 bits keeps them."""
    kept = (cached(part, FP8).float() for part in (key, value))
    attend: Any = eager_attention_forward
    result: tuple[Tensor, Tensor] = attend(module, query, *kept, *args, **options)
    return result


AttentionInterface.register(ROUNDED, _attend_to_rounded)
AttentionMaskInterface.register(ROUNDED, eager_mask)


def load_fp8(directory: Path, device: str, limits: GpuLimits = LIMITS) -> GpuRunner:
    return load(directory, device, limits, cache_dtype=FP8)


def rounded_logits(model: nn.Module, token_ids: list[int]) -> Tensor:
    """What transformers makes of all tokens with keys and values of 8 bits."""
    transformed: Any = model
    transformed.set_attn_implementation(ROUNDED)
    return expected_logits(model, token_ids)


close = functools.partial(assert_close, atol=TOLERANCE)


@pytest.mark.parametrize("name", ["llama-llama3-tied", "qwen2-half-sliding"])
def test_prefill_decodes_and_verify_rows_see_rounded_keys(
    name: str, tmp_path: Path, device: str
) -> None:
    """Those of their own pass too: a sequence in pieces is transformers' with rounded ones."""
    model = save_checkpoint(tmp_path, on_gpus(name))
    runner = load_fp8(tmp_path, device)
    (table,) = block_tables(1)
    token_ids = random_tokens(40)
    rows, start = [], 0
    for num_rows in (19, 1, 5, 15):
        tokens = token_ids[start : start + num_rows]
        rows.append(runner.run([Span(tokens, start, table, num_rows)]).clone())
        start += num_rows
    logits = torch.cat(rows)
    exact = expected_logits(model, token_ids)
    assert logits.dtype == torch.float32
    assert (logits.cpu() - exact).abs().max() > EFFECT
    close(logits, rounded_logits(model, token_ids))


def test_a_verified_row_is_the_row_decoded_to_the_bit(tmp_path: Path, device: str) -> None:
    """Batch-invariant: prefilled at once, verified, decoded one by one, in company."""
    save_checkpoint(tmp_path, on_gpus("llama"))
    first, second, third = block_tables(3)
    tokens = random_tokens(8)
    whole = load_fp8(tmp_path, device, INVARIANT).run([Span(tokens, 0, first, 8)]).clone()
    runner = load_fp8(tmp_path, device, INVARIANT)
    runner.run([Span(tokens[:3], 0, first, 0), Span(tokens[:5], 0, second, 0)])
    verified = runner.run([Span([5], 5, second, 1), Span(tokens[3:], 3, first, 5)]).clone()
    assert torch.equal(verified[1:], whole[3:])
    runner.run([Span(tokens[:5], 0, third, 0)])
    for at in range(5, 8):
        decoded = runner.run([Span([tokens[at]], at, third, 1)])
        assert torch.equal(decoded[0], whole[at])


def test_a_copied_block_goes_its_own_way(tmp_path: Path, device: str) -> None:
    """A fork in 8 bits: the same beginning in another block, then other tokens."""
    model = save_checkpoint(tmp_path, on_gpus("llama"))
    runner = load_fp8(tmp_path, device)
    tokens = random_tokens(14)
    runner.run([Span(tokens[:10], 0, [0], 0)])
    runner.copy_blocks([(0, 5)])
    runner.run([Span(tokens[10:], 10, [0], 1)])
    other = [*tokens[:10], *random_tokens(6, seed=9)]
    forked = runner.run([Span(other[10:], 10, [5], 6)])
    close(forked, rounded_logits(model, other)[10:])
