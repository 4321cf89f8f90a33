"""What a model needs of a device's memory, and what is left for its cache: arithmetic alone.

Nothing is allocated and no device is asked, so that a plan can be made for a card that is not here.
"""

import math
from dataclasses import dataclass

import torch

from shared.common.errors import ConfigError
from shared.engine.checkpoint import expected_shapes
from shared.engine.config import ModelConfig

GIB, KIB = 2**30, 2**10
# Context of the driver, code of kernels and libraries, workspaces of matrix products. An estimate.
LIBRARY_BYTES = 768 * 2**20
# A graph keeps parameters of its launches on both sides. An estimate, of which there are
# LAUNCHES_PER_LAYER a layer and a few around them.
LAUNCH_BYTES, LAUNCHES_PER_LAYER, LAUNCHES_AROUND = 4 * 2**10, 9, 8
# Attention in pieces: one chunk of the context against one tile of query rows of a key head. They
# are those of kernels/gpu/attention_work.py and of the runner; decode rounds have the small tiles.
CHUNK_LEN = 256  # tokens
DECODE_TILES, PREFILL_TILE = (16, 32), 128
FLOAT32_BYTES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPlan:
    """A model, the rounds it is to run, and a device."""

    config: ModelConfig
    dtype: torch.dtype  # of weights and activations
    cache_dtype: torch.dtype
    total_bytes: int  # of the device
    max_rows: int  # of a round
    max_sequences: int  # of a round
    max_model_len: int  # tokens of one sequence
    block_size: int  # tokens
    utilization: float = 0.9  # share of the device that may be used
    max_graph_rows: int = 512  # 0: no graphs
    num_graphs: int = 44  # 22 sizes, two tiles of attention

    @property
    def usable_bytes(self) -> int:
        """What may be used of the device, by everything together."""
        return int(self.total_bytes * self.utilization)

    @property
    def weight_bytes(self) -> int:
        """All tensors of the checkpoint; a tied head is the embedding."""
        return _num_weights(self.config) * self.dtype.itemsize

    @property
    def cache_bytes_per_token(self) -> int:
        """Keys and values of all layers."""
        config = self.config
        numbers = 2 * config.num_layers * config.num_kv_heads * config.head_dim
        return numbers * self.cache_dtype.itemsize

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
        rows = self.max_rows * (numbers + 5 * config.intermediate_size) * itemsize
        num_logit_rows = max(min(self.max_graph_rows, self.max_rows), self.max_sequences)
        logits = num_logit_rows * itemsize + self.max_sequences * FLOAT32_BYTES
        tables = self.max_sequences * -(-self.max_model_len // self.block_size) * FLOAT32_BYTES
        rotations = config.max_model_len * config.head_dim * FLOAT32_BYTES
        return rows + logits * config.vocab_size + tables + rotations

    @property
    def graph_bytes(self) -> int:
        """One pool, as large as the largest graph's activations, and the launches of all graphs."""
        if not self.max_graph_rows:
            return 0
        config = self.config
        numbers = 4 * config.hidden_size + config.num_heads * config.head_dim
        row = (numbers + 5 * config.intermediate_size) * self.dtype.itemsize
        num_launches = LAUNCHES_PER_LAYER * config.num_layers + LAUNCHES_AROUND
        rows = min(self.max_graph_rows, self.max_rows) * row
        return rows + self.num_graphs * num_launches * LAUNCH_BYTES

    @property
    def prefill_partial_bytes(self) -> int:
        """Partial results of the longest prefill: every tile of its rows against every chunk."""
        tile_rows = max(1, PREFILL_TILE // self.config.layout.group_size)
        num_tiles = -(-min(self.max_rows, self.max_model_len) // tile_rows)
        return num_tiles * self._chunks * self._partial_bytes(PREFILL_TILE)

    @property
    def decode_partial_bytes(self) -> int:
        """Partial results of decode and verify rounds.

        Every sequence at full length, or else, where that is less, two tiles of every chunk of the
        cache and one of every sequence.
        """
        num_items = min(
            self.max_sequences * self._chunks,
            2 * -(-self.num_tokens // CHUNK_LEN) + self.max_sequences,
        )
        return num_items * self._decode_item_bytes

    @property
    def num_blocks(self) -> int:
        """Blocks of the cache that fit."""
        free = self.usable_bytes - self._fixed_bytes
        per_block = self.cache_bytes_per_token * self.block_size
        item = self._decode_item_bytes
        # Both ways to bound partial results need no more than they are counted here.
        by_sequences = (free - self.max_sequences * self._chunks * item) // per_block
        partials_per_block = 2 * item * self.block_size / CHUNK_LEN
        rest = free - (self.max_sequences + 2) * item
        by_tokens = math.floor(rest / (per_block + partials_per_block))
        return max(0, by_sequences, by_tokens)

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
        config = self.config
        num_read = _num_weights(config)
        if not config.is_embedding_tied:  # of the embedding, a row a token is read
            num_read -= config.vocab_size * config.hidden_size
        cache = context * num_sequences * self.cache_bytes_per_token
        return 1e3 * (num_read * self.dtype.itemsize + cache) / bandwidth

    def render(self, *, bandwidth: float | None = None, context: int = 1_024) -> str:
        """The plan as a table for a person; with a step's floor where `bandwidth` is given."""
        rows = [
            ("device", _gib(self.total_bytes)),
            (f"usable ({100 * self.utilization:g} %)", _gib(self.usable_bytes)),
            ("weights", _gib(self.weight_bytes)),
            ("activations", _gib(self.activation_bytes)),
            ("partial attention", _gib(self.prefill_partial_bytes + self.decode_partial_bytes)),
            ("graphs", _gib(self.graph_bytes)),
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
        needed = self._fixed_bytes + self._decode_item_bytes * self._chunks
        blocks = -(-self.max_model_len // self.block_size)
        needed += blocks * self.block_size * self.cache_bytes_per_token
        raise ConfigError(
            f"one sequence of {self.max_model_len} tokens does not fit: about {_gib(needed)} are "
            f"needed, {_gib(self.usable_bytes)} may be used; allowed: a shorter max_model_len, "
            f"fewer rows, a smaller model\n{self.render()}"
        )

    @property
    def _fixed_bytes(self) -> int:
        """Everything whose size does not depend on the cache's."""
        parts = (self.weight_bytes, self.activation_bytes, self.graph_bytes)
        return sum(parts) + self.prefill_partial_bytes + LIBRARY_BYTES

    @property
    def _chunks(self) -> int:
        """Of the longest context."""
        return -(-self.max_model_len // CHUNK_LEN)

    @property
    def _decode_item_bytes(self) -> int:
        """One tile against one chunk, set aside for each of the small tiles."""
        return sum(map(self._partial_bytes, DECODE_TILES))

    def _partial_bytes(self, tile: int) -> int:
        """Output, maximum and sum of every row of a tile, in float32, for all key heads."""
        config = self.config
        return config.num_kv_heads * tile * (config.head_dim + 2) * FLOAT32_BYTES


def _num_weights(config: ModelConfig) -> int:
    return sum(map(math.prod, expected_shapes(config).values()))


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / GIB:,.2f} GiB"
