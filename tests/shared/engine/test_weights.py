"""Fused, permuted and packed weights. That they are right as a whole, test_decoder.py shows."""

from pathlib import Path

import pytest
import torch

from kernels.linear import has_half_kernel
from shared.engine.config import ModelConfig
from shared.engine.weights import ModelWeights, load_weights
from tests.checkpoints import CONFIGS, save_checkpoint


def load(directory: Path, name: str, dtype: torch.dtype) -> ModelWeights:
    """Weights of a freshly saved checkpoint."""
    save_checkpoint(directory, CONFIGS[name], dtype=dtype)
    return load_weights(directory, ModelConfig.from_directory(directory))


@pytest.mark.skipif(not has_half_kernel(), reason="this torch or processor has no FBGEMM")
@pytest.mark.parametrize(
    ("dtype", "is_half"),
    [(torch.float16, True), (torch.bfloat16, True), (torch.float32, False)],
    ids=str,
)
def test_sixteen_bit_checkpoints_stay_in_sixteen_bits(
    dtype: torch.dtype, *, is_half: bool, tmp_path: Path
) -> None:
    """All matrices of a layer and the head, whatever is fused; the embedding is float32."""
    weights = load(tmp_path, "llama", dtype)
    layer = weights.layers[0]
    matrices = [layer.qkv, layer.output, layer.gate_up, layer.down, weights.lm_head]
    assert [matrix.half is not None for matrix in matrices] == [is_half] * 5
    assert weights.embedding.dtype == torch.float32


@pytest.mark.parametrize(
    ("name", "biases", "has_qk_norm"),
    [
        ("llama", (False, False, False), False),
        ("llama-yarn-biased", (True, True, True), False),
        ("qwen2", (True, False, False), False),
        ("qwen3", (False, False, False), True),
        ("qwen3-biased", (True, True, False), True),
    ],
)
def test_switches_reach_the_layers(
    name: str, biases: tuple[bool, bool, bool], *, has_qk_norm: bool, tmp_path: Path
) -> None:
    """Biases of the three places, and query and key norms."""
    layer = load(tmp_path, name, torch.float32).layers[-1]
    found = (layer.qkv.bias, layer.output.bias, layer.gate_up.bias)
    assert tuple(bias is not None for bias in found) == biases
    assert (layer.qk_norm is not None) == has_qk_norm


def test_a_tied_head_is_the_embedding(tmp_path: Path) -> None:
    """In float32: [hidden, V] against [V, hidden]."""
    weights = load(tmp_path, "llama-llama3-tied", torch.float32)
    assert weights.lm_head.full is not None
    assert torch.equal(weights.lm_head.full.t(), weights.embedding)
