"""Weights on a device: the numbers of the CPU's loader, from any directory, a tensor at a time."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from kernels.linear import PackedLinear
from kernels.rms_norm import RmsNorm, pack_rms_norm
from shared.common.errors import ConfigError
from shared.engine import weights as cpu
from shared.engine.checkpoint import expected_shapes, stream_tensors
from shared.engine.config import ModelConfig
from shared.engine.gpu.weights import GpuWeights, load_gpu_weights
from tests.checkpoints import CONFIGS, save_checkpoint

CPU = torch.device("cpu")


def load(directory: Path, dtype: torch.dtype = torch.float32) -> GpuWeights:
    """Without looking at progress."""
    config = ModelConfig.from_directory(directory)
    return load_gpu_weights(
        directory, config, device=CPU, dtype=dtype, progress=lambda _done, _total: None
    )


def assert_same(weight: Tensor, bias: Tensor | None, packed: PackedLinear) -> None:
    """A matrix and its bias, bit by bit; packed in float32."""
    assert packed.full is not None
    assert torch.equal(weight, packed.full.t())
    assert_same_bias(bias, packed)


def assert_same_bias(bias: Tensor | None, packed: PackedLinear) -> None:
    """Or that there is none."""
    assert (bias is None) == (packed.bias is None)
    if bias is not None and packed.bias is not None:
        assert torch.equal(bias, packed.bias)


def assert_folded(weight: Tensor, norm: Tensor, packed: PackedLinear, scale: Tensor) -> None:
    """A matrix whose columns were multiplied with the norm before it, of which ones are left."""
    assert packed.full is not None
    assert torch.equal(weight, packed.full.t() * scale)
    assert torch.equal(norm, torch.ones_like(norm))


def assert_same_norm(weight: Tensor, packed: RmsNorm) -> None:
    """Bit by bit, once packed too."""
    assert torch.equal(pack_rms_norm(weight, eps=1e-6).scaled_weight, packed.scaled_weight)


@pytest.mark.parametrize("max_shard_size", ["1GB", "20KB"])
@pytest.mark.parametrize("name", CONFIGS)
def test_every_number_is_where_the_cpu_has_it(
    name: str, max_shard_size: str, tmp_path: Path
) -> None:
    """All kinds, tied and untied, with and without biases and norms of heads, one file and many."""
    save_checkpoint(tmp_path, CONFIGS[name], max_shard_size=max_shard_size)
    config = ModelConfig.from_directory(tmp_path)
    expected, weights = cpu.load_weights(tmp_path, config), load(tmp_path)
    assert torch.equal(weights.embedding, expected.embedding)
    assert_same(weights.lm_head, None, expected.lm_head)
    assert_same_norm(weights.final_norm, expected.final_norm)
    assert len(weights.layers) == config.num_layers
    saved = dict(stream_tensors(tmp_path, expected_shapes(config)))
    for index, (layer, other) in enumerate(zip(weights.layers, expected.layers, strict=True)):
        assert_same(layer.output, layer.output_bias, other.output)
        assert_same(layer.down, layer.down_bias, other.down)
        for matrix, bias, packed, norm, which in (
            (layer.qkv, layer.qkv_bias, other.qkv, layer.attention_norm, "input"),
            (layer.gate_up, layer.gate_up_bias, other.gate_up, layer.mlp_norm, "post_attention"),
        ):
            scale = saved[f"model.layers.{index}.{which}_layernorm.weight"]
            assert_folded(matrix, norm, packed, scale)
            assert_same_bias(bias, packed)
        assert (layer.qk_norm is None) == (other.qk_norm is None)
        if layer.qk_norm is not None and other.qk_norm is not None:
            counts = torch.tensor([config.num_heads, config.num_kv_heads])
            assert_same_norm(layer.qk_norm.repeat_interleave(counts, dim=0), other.qk_norm)


@pytest.mark.parametrize("stored", [torch.float32, torch.float16, torch.bfloat16])
def test_stored_numbers_are_rounded_to_what_was_asked_for(
    stored: torch.dtype, tmp_path: Path
) -> None:
    """All tensors have one dtype, and each number is the stored one, rounded once."""
    save_checkpoint(tmp_path, CONFIGS["llama"], dtype=stored)
    weights = load(tmp_path, torch.bfloat16)
    saved = load_file(tmp_path / "model.safetensors")
    down = saved["model.layers.2.mlp.down_proj.weight"].bfloat16()
    assert torch.equal(weights.layers[2].down, down)
    assert weights.layers[0].qkv.dtype == weights.final_norm.dtype == torch.bfloat16


def test_in_float16_norms_stay_apart(tmp_path: Path) -> None:
    """Products of small numbers would vanish."""
    save_checkpoint(tmp_path, CONFIGS["llama"])
    weights, saved = load(tmp_path, torch.float16), load_file(tmp_path / "model.safetensors")
    expected = saved["model.layers.1.post_attention_layernorm.weight"]
    assert torch.equal(weights.layers[1].mlp_norm, expected.half())


def test_a_tied_head_is_the_embedding(tmp_path: Path) -> None:
    """One tensor, not two: it is the largest of a small model."""
    save_checkpoint(tmp_path, CONFIGS["llama-llama3-tied"])
    weights = load(tmp_path)
    assert weights.lm_head is weights.embedding


def test_progress_counts_the_bytes_on_the_device(tmp_path: Path) -> None:
    """Once a tensor, upwards, to the end, in the dtype of the device."""
    save_checkpoint(tmp_path, CONFIGS["qwen3-biased"])
    reports: list[tuple[int, int]] = []
    config = ModelConfig.from_directory(tmp_path)
    load_gpu_weights(
        tmp_path,
        config,
        device=CPU,
        dtype=torch.bfloat16,
        progress=lambda done, total: reports.append((done, total)),
    )
    saved = load_file(tmp_path / "model.safetensors")
    done = [report[0] for report in reports]
    num_bytes = sum(tensor.numel() * 2 for tensor in saved.values())
    assert len(reports) == len(saved)
    assert done == sorted(set(done))
    assert reports[-1] == (num_bytes, num_bytes)


def test_a_wrong_tensor_is_named(tmp_path: Path) -> None:
    """In the words of the checkpoint's reader."""
    save_checkpoint(tmp_path, CONFIGS["llama"])
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    del tensors["model.norm.weight"]
    save_file(tensors, path)
    with pytest.raises(ConfigError, match=r"tensor model\.norm\.weight is missing \(1 in all\)"):
        load(tmp_path)
