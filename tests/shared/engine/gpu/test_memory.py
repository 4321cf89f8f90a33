"""The memory plan, against known figures and against tensors."""

import dataclasses
import itertools
from pathlib import Path

import pytest
import torch

from kernels.gpu import attention_work
from shared.common.errors import ConfigError
from shared.engine.config import ModelConfig
from shared.engine.gpu.memory import LIBRARY_BYTES, DecoderPlan
from shared.engine.gpu.weights import GpuWeights, allocate_gpu_weights
from tests.checkpoints import CONFIGS, save_checkpoint
from tests.shared.engine.configs import make_config

LLAMA_3_8B = dataclasses.replace(
    make_config(num_layers=32),
    hidden_size=4_096,
    intermediate_size=14_336,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    vocab_size=128_256,
    max_model_len=8_192,
)
H200_BYTES = 150_121_545_728


def make_plan(
    config: ModelConfig = LLAMA_3_8B,
    *,
    total_bytes: int = H200_BYTES,
    max_sequences: int = 64,
    max_model_len: int = 8_192,
) -> DecoderPlan:
    """In bfloat16."""
    return DecoderPlan(
        config=config,
        dtype=torch.bfloat16,
        cache_dtype=torch.bfloat16,
        total_bytes=total_bytes,
        max_rows=512,
        max_sequences=max_sequences,
        max_model_len=max_model_len,
        block_size=64,
    )


def num_bytes(weights: GpuWeights) -> int:
    """Of all tensors, each counted once."""
    parts = [vars_of(layer) for layer in weights.layers]
    tensors = [weights.embedding, weights.final_norm, weights.lm_head, *itertools.chain(*parts)]
    return sum({id(tensor): tensor.nbytes for tensor in tensors}.values())


def vars_of(layer: object) -> list[torch.Tensor]:
    """The tensors among a dataclass's fields."""
    assert dataclasses.is_dataclass(layer)
    values = [getattr(layer, field.name) for field in dataclasses.fields(layer)]
    return [value for value in values if value is not None]


def test_an_8b_model_has_the_known_figures() -> None:
    """8.03 billion weights in 16.06 GB, 128 KiB a token, and 3.50 ms to read them on an H200."""
    plan = make_plan()
    assert plan.weight_bytes == 2 * 8_030_261_248
    assert plan.cache_bytes_per_token == 128 * 1024
    assert plan.step_floor_ms(4_285e9) == pytest.approx(3.50, abs=0.005)
    assert plan.step_floor_ms(4_285e9, context=1_024) == pytest.approx(3.53, abs=0.005)


def test_a_cache_of_eight_bits_holds_twice_the_tokens() -> None:
    """Only the cache's dtype counts there."""
    plan = dataclasses.replace(make_plan(), cache_dtype=torch.float8_e4m3fn)
    assert plan.cache_bytes_per_token == 64 * 1024


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", CONFIGS)
def test_weights_are_counted_to_the_byte(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """What the loader sets aside: biases, norms of heads, a tied head once."""
    save_checkpoint(tmp_path, CONFIGS[name])
    config = ModelConfig.from_directory(tmp_path)
    weights = allocate_gpu_weights(config, device=torch.device("cpu"), dtype=dtype)
    plan = dataclasses.replace(make_plan(config), dtype=dtype)
    assert plan.weight_bytes == num_bytes(weights)


def test_a_step_reads_a_tied_head_but_no_embedding() -> None:
    """Either way, one matrix of the vocabulary's size."""
    tied = dataclasses.replace(LLAMA_3_8B, is_embedding_tied=True)
    floors = [make_plan(config).step_floor_ms(1e12) for config in (tied, LLAMA_3_8B)]
    assert floors[0] == floors[1]


@pytest.mark.parametrize("max_sequences", [1, 63, 1009])
@pytest.mark.parametrize("max_model_len", [1, 1009, 8192])
@pytest.mark.parametrize("total_bytes", [20 * 10**9, 80 * 10**9, H200_BYTES])
def test_all_parts_together_fill_what_may_be_used(
    max_sequences: int, max_model_len: int, total_bytes: int
) -> None:
    """Nothing beyond it, if anything fits, and at most two blocks less."""
    plan = make_plan(
        max_sequences=max_sequences, max_model_len=max_model_len, total_bytes=total_bytes
    )
    used = (
        plan.weight_bytes
        + plan.activation_bytes
        + plan.graph_bytes
        + plan.sampler_bytes
        + plan.partial_bytes(plan.num_blocks)
        + plan.cache_bytes
        + LIBRARY_BYTES
    )
    block_bytes = plan.block_size * plan.cache_bytes_per_token
    if plan.num_blocks:
        assert plan.usable_bytes - 2 * block_bytes <= used <= plan.usable_bytes
    else:
        assert used > plan.usable_bytes - block_bytes
    assert plan.num_sequences == plan.num_blocks // -(-max_model_len // 64)


@pytest.mark.parametrize("is_batch_invariant", [False, True])
@pytest.mark.parametrize("num_blocks", [4, 300])
def test_what_attention_sets_aside_is_counted_to_the_byte(
    num_blocks: int,
    is_batch_invariant: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    """The runner allocates what the plan says, over any cache."""
    config = dataclasses.replace(make_config(), head_dim=32, max_model_len=2_048)
    plan = dataclasses.replace(
        make_plan(config, max_sequences=5, max_model_len=2_048),
        is_batch_invariant=is_batch_invariant,
    )
    limits = plan.limits(num_blocks)
    works = [
        attention_work.AttentionWork.allocate(
            limits.room_for_items(tiling, config.layout.group_size),
            limits.max_rows,
            config.layout,
            tiling.block_m,
            "cpu",
            chunk_len=tiling.chunk_len,
            merges_apart=tiling.merges_apart,
        )
        for tiling in limits.tilings
    ]
    tensors = [
        tensor
        for work in works
        for tensor in (work.items, work.rows, work.counters, work.outputs, work.maxima, work.sums)
    ]
    assert sum(tensor.nbytes for tensor in tensors) == plan.partial_bytes(num_blocks)


def test_the_plan_is_a_table_in_words() -> None:
    """Names, then figures with units, one below the other."""
    lines = make_plan().render(bandwidth=4_285e9).splitlines()
    column = lines[0].index("139.81 GiB")
    assert all(line[column - 1] == " " and line[column] != " " for line in lines)
    assert [line[column:] for line in lines if line.startswith(("usable", "weights"))] == [
        "125.83 GiB",
        "14.96 GiB",
    ]
    assert lines[9].endswith("128.0 KiB")
    assert lines[-1].endswith("at least 3.53 ms at 4,285 GB/s")


def test_what_does_not_fit_is_refused_with_the_plan() -> None:
    """Not even one sequence: the error says what is needed, and where it goes."""
    plan = make_plan(total_bytes=16 * 2**30)
    with pytest.raises(ConfigError, match=r"one sequence of 8192 tokens does not fit") as error:
        plan.check()
    assert plan.render() in str(error.value)
    assert plan.num_tokens == plan.num_sequences == 0


def test_one_sequence_is_enough() -> None:
    """A card for one stream is a card."""
    fixed = make_plan(max_sequences=1)
    fitting = next(
        plan
        for size in range(16, 40)
        if (plan := dataclasses.replace(fixed, total_bytes=size * 2**30)).num_sequences
    )
    fitting.check()
