"""What a model needs of a device's memory, and what is left for its cache: arithmetic alone.

Nothing is allocated and no device is asked, so that a plan can be made for a card that is not here.
"""

import math
from abc import ABC, abstractmethod
from bisect import bisect_right
from dataclasses import dataclass

import torch

from kernels.gpu.attention_work import ITEM_WORDS, ROW_WORDS
from shared.common.errors import ConfigError
from shared.engine.checkpoint import expected_shapes
from shared.engine.config import ModelConfig
from shared.engine.gpu.limits import GRAPH_ROWS, GpuLimits
from shared.engine.gpu.sampling import sampler_bytes
from shared.engine.shape import ModelShape

GIB, KIB = 2**30, 2**10
# Context of the driver, code of kernels and libraries, workspaces of matrix products. An estimate.
LIBRARY_BYTES = 768 * 2**20
# A graph keeps parameters of its launches on both sides. An estimate, of which there are
# LAUNCHES_PER_LAYER a layer and a few around them.
LAUNCH_BYTES, LAUNCHES_PER_LAYER, LAUNCHES_AROUND = 4 * 2**10, 9, 8
FLOAT32_BYTES = INT32_BYTES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPlan(ABC):
    """A model, the rounds it is to run, and a device."""

    config: ModelShape
    dtype: torch.dtype  # of weights and activations
    cache_dtype: torch.dtype
    total_bytes: int  # of the device
    max_rows: int  # of a round
    max_sequences: int  # of a round
    max_model_len: int  # tokens of one sequence
    block_size: int  # tokens
    utilization: float = 0.9  # share of the device that may be used
    max_graph_rows: int = GRAPH_ROWS[-1]  # 0: no graphs
    is_batch_invariant: bool = False
    is_drafter: bool = False

    def limits(self, num_blocks: int) -> GpuLimits:
        """Of rounds over a cache of so many blocks."""
        return GpuLimits(
            num_blocks=num_blocks,
            block_size=self.block_size,
            max_rows=self.max_rows,
            max_sequences=self.max_sequences,
            max_model_len=self.max_model_len,
            max_graph_rows=self.max_graph_rows,
            is_batch_invariant=self.is_batch_invariant,
            is_drafter=self.is_drafter,
        )

    @property
    def usable_bytes(self) -> int:
        """What may be used of the device, by everything together."""
        return int(self.total_bytes * self.utilization)

    @property
    @abstractmethod
    def weight_bytes(self) -> int:
        """All weights."""

    @property
    @abstractmethod
    def read_bytes(self) -> int:
        """Of the weights, what a decode step has to read."""

    @property
    @abstractmethod
    def activation_bytes(self) -> int:
        """Of the largest round."""

    @property
    @abstractmethod
    def graph_bytes(self) -> int:
        """Of all graphs, with what their rounds compute."""

    @property
    def cache_bytes_per_token(self) -> int:
        """Keys and values of all layers."""
        layout = self.config.layout
        numbers = 2 * self.config.num_layers * layout.num_kv_heads * layout.head_dim
        return numbers * self.cache_dtype.itemsize

    @property
    def max_sampled_rows(self) -> int:
        """Every sequence of a round is sampled at one row at least, prefill included."""
        return max(self.max_rows, self.max_sequences)

    @property
    def sampler_bytes(self) -> int:
        """Of the sampler, with the float64 copies of rows that penalties change."""
        return sampler_bytes(self.max_sampled_rows, self.config.vocab_size)

    def partial_bytes(self, num_blocks: int) -> int:
        """What attention leaves to be merged, and its lists, over a cache of so many blocks."""
        limits, layout = self.limits(num_blocks), self.config.layout
        words = ITEM_WORDS.value + 2 * layout.num_kv_heads  # counters, of chunks and of segments
        per_row = layout.num_kv_heads * (layout.head_dim + 2) * FLOAT32_BYTES
        return sum(
            limits.room_for_items(tiling, layout.group_size)
            * (per_row * tiling.block_m + words * INT32_BYTES)
            + limits.max_rows * ROW_WORDS.value * INT32_BYTES
            for tiling in limits.tilings
        )

    def needed_bytes(self, num_blocks: int) -> int:
        """Everything together, with a cache of so many blocks."""
        cache_bytes = num_blocks * self.block_size * self.cache_bytes_per_token
        return self._fixed_bytes + self.partial_bytes(num_blocks) + cache_bytes

    @property
    def num_blocks(self) -> int:
        """Blocks of the cache that fit, with what attention over them leaves to be merged."""
        per_block = self.cache_bytes_per_token * self.block_size
        free = self.usable_bytes - self._fixed_bytes
        candidates = range(1, max(1, free // per_block + 1))
        # What is needed grows with the blocks: the last of them that fits, by bisection.
        return bisect_right(
            candidates, free, key=lambda num: num * per_block + self.partial_bytes(num)
        )

    @property
    def num_tokens(self) -> int:
        """Tokens of the cache that fits."""
        return self.num_blocks * self.block_size

    @property
    def cache_bytes(self) -> int:
        """The whole cache."""
        return self.num_tokens * self.cache_bytes_per_token

    @property
    def num_sequences(self) -> int:
        """Sequences of `max_model_len` that fit the cache at once."""
        return self.num_blocks // -(-self.max_model_len // self.block_size)

    def step_floor_ms(self, bandwidth: float, *, context: int = 0, num_sequences: int = 1) -> float:
        """Milliseconds in which a decode step's bytes can be read, whoever computes it.

        Args:
            bandwidth: bytes a second.
            context: tokens of each sequence.
            num_sequences: of the round.
        """
        cache = context * num_sequences * self.cache_bytes_per_token
        return 1e3 * (self.read_bytes + cache) / bandwidth

    def render(self, *, bandwidth: float | None = None, context: int = 1_024) -> str:
        """The plan as a table for a person; with a step's floor where `bandwidth` is given."""
        rows = [
            ("device", _gib(self.total_bytes)),
            (f"usable ({100 * self.utilization:g} %)", _gib(self.usable_bytes)),
            ("weights", _gib(self.weight_bytes)),
            ("activations", _gib(self.activation_bytes)),
            ("partial attention", _gib(self.partial_bytes(self.num_blocks))),
            ("graphs", _gib(self.graph_bytes)),
            ("sampler", _gib(self.sampler_bytes)),
            ("driver and libraries", _gib(LIBRARY_BYTES)),
            ("cache", _gib(self.cache_bytes)),
            ("cache of a token", f"{self.cache_bytes_per_token / KIB:,.1f} KiB"),
            ("tokens that fit", f"{self.num_tokens:,}"),
            (f"blocks of {self.block_size} tokens", f"{self.num_blocks:,}"),
            (f"sequences of {self.max_model_len:,} tokens", f"{self.num_sequences:,}"),
        ]
        if bandwidth is not None:
            floor = self.step_floor_ms(bandwidth, context=context)
            name = f"step of one sequence, {context:,} tokens"
            rows.append((name, f"at least {floor:,.2f} ms at {bandwidth / 1e9:,.0f} GB/s"))
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)

    def check(self) -> None:
        """Refuse what cannot serve even one sequence.

        Raises:
            ConfigError: with the plan.
        """
        if self.num_sequences:
            return
        needed = self.needed_bytes(-(-self.max_model_len // self.block_size))
        raise ConfigError(
            f"one sequence of {self.max_model_len} tokens does not fit: about {_gib(needed)} are "
            f"needed, {_gib(self.usable_bytes)} may be used; allowed: a shorter max_model_len, "
            f"fewer rows, a smaller model\n{self.render()}"
        )

    def check_free(self, num_blocks: int, free_bytes: int, flag: str) -> None:
        """Refuse what the GPU's other processes leave no room for.

        Args:
            num_blocks: of the cache.
            free_bytes: of the GPU, now that the driver has its part for this process.
            flag: that asks for so much.

        Raises:
            ConfigError: with the plan.
        """
        needed = self.needed_bytes(num_blocks)
        if needed - LIBRARY_BYTES > free_bytes:
            raise ConfigError(
                f"{flag} asks for {_gib(needed)} of the GPU's memory: must be at most what other "
                f"processes leave of it, {_gib(free_bytes)}\n{self.render()}"
            )

    @property
    def _fixed_bytes(self) -> int:
        """Everything whose size does not depend on the cache's."""
        model_bytes = self.weight_bytes + self.activation_bytes + self.graph_bytes
        return model_bytes + self.sampler_bytes + LIBRARY_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderPlan(MemoryPlan):
    """A plan for our own decoder, from the model's configuration alone."""

    config: ModelConfig

    @property
    def weight_bytes(self) -> int:
        """All tensors of the checkpoint; a tied head is the embedding."""
        return _num_weights(self.config) * self.dtype.itemsize

    @property
    def read_bytes(self) -> int:
        """All weights but the embedding, unless it is the head too: of it a row a token is read."""
        num_read = _num_weights(self.config)
        if not self.config.is_embedding_tied:
            num_read -= self.config.vocab_size * self.config.hidden_size
        return num_read * self.dtype.itemsize

    @property
    def activation_bytes(self) -> int:
        """Of the largest round, with logits, tables of blocks and the table of rotations.

        A row has at most, when a layer's gate and up are computed: residual, normed and the two
        projections (4 hidden), the attention's output (heads x D), gate and up of this layer and of
        the one before (4 inner), and their product (1 inner). Logits: one row a row of the largest
        graph, or a sequence where there are more, and a float32 copy for every sequence.
        """
        config, itemsize = self.config, self.dtype.itemsize
        numbers = 4 * config.hidden_size + config.num_heads * config.head_dim
        limits = self.limits(0)
        rows = limits.max_rows * (numbers + 5 * config.intermediate_size) * itemsize
        num_logit_rows = max(*limits.graph_rows, self.max_sequences)
        logits = num_logit_rows * itemsize + self.max_sequences * FLOAT32_BYTES
        tables = self.max_sequences * -(-self.max_model_len // self.block_size) * FLOAT32_BYTES
        rotations = config.max_model_len * config.head_dim * FLOAT32_BYTES
        return rows + logits * config.vocab_size + tables + rotations

    @property
    def graph_bytes(self) -> int:
        """One pool, as large as the largest graph's activations, and the launches of all graphs."""
        config, limits = self.config, self.limits(0)
        num_graphs = sum(map(len, limits.graphs.values()))
        numbers = 4 * config.hidden_size + config.num_heads * config.head_dim
        row = (numbers + 5 * config.intermediate_size) * self.dtype.itemsize
        num_launches = LAUNCHES_PER_LAYER * config.num_layers + LAUNCHES_AROUND
        return max(limits.graph_rows, default=0) * row + num_graphs * num_launches * LAUNCH_BYTES


def _num_weights(config: ModelConfig) -> int:
    return sum(map(math.prod, expected_shapes(config).values()))


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / GIB:,.2f} GiB"
