"""The decoder of the Llama family over flattened tokens and a paged cache.

Knows nothing of sequences beyond the rows of one pass. Source: the `modeling_*` files of
transformers, whose logits the tests compare with.
"""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from kernels.attention_plan import AttentionGroup
from kernels.linear import add_linear_reference, linear_reference
from kernels.paged_attention import paged_attention_reference
from kernels.rms_norm import rms_norm_reference
from kernels.rotary_kv_write import rotary_kv_write_reference, turns_of
from kernels.silu_mul import silu_mul_reference
from shared.engine.cache import PagedCache
from shared.engine.config import ModelConfig
from shared.engine.rope import rope_table
from shared.engine.weights import LayerWeights, ModelWeights


@dataclass(frozen=True, slots=True)
class Batch:
    """The T rows of one pass, of all its spans one after the other."""

    token_ids: Tensor  # [T] int64
    positions: Tensor  # [T] int64
    slot_mapping: Tensor  # [T] int64, cache slots
    plan: list[AttentionGroup]
    logit_rows: Tensor | None  # int64 rows whose logits are asked for; None for all


class Layers(Protocol):
    """A model's layers, bound to a cache: what `shared.engine.runner` runs."""

    def forward(self, batch: Batch) -> Tensor:
        """Write keys and values of all rows; logits [rows asked for, V] float32."""
        ...


class Decoder(Layers):
    """A model's layers, bound to its weights and its cache."""

    def __init__(self, config: ModelConfig, weights: ModelWeights, cache: PagedCache) -> None:
        self._config = config
        self._weights = weights
        self._layout = config.layout
        self._rope_table = rope_table(config.rope, config.head_dim, config.max_model_len)
        self._cache = cache.layers

    def forward(self, batch: Batch) -> Tensor:
        """See Layers."""
        hidden = self._weights.embedding.index_select(0, batch.token_ids)
        turns = turns_of(self._rope_table, batch.positions, self._layout)
        last = len(self._weights.layers) - 1
        for index, layer in enumerate(self._weights.layers):
            mixed = self._attention(index, layer, hidden, turns, batch)
            if index == last and batch.logit_rows is not None:
                if not len(batch.logit_rows):
                    return hidden.new_empty(0, self._config.vocab_size)
                hidden = hidden.index_select(0, batch.logit_rows)
                mixed = mixed.index_select(0, batch.logit_rows)
            add_linear_reference(hidden, mixed, layer.output)
            gate_up = linear_reference(rms_norm_reference(hidden, layer.mlp_norm), layer.gate_up)
            add_linear_reference(hidden, silu_mul_reference(gate_up), layer.down)
        hidden = rms_norm_reference(hidden, self._weights.final_norm)
        return linear_reference(hidden, self._weights.lm_head)

    def _attention(
        self, index: int, layer: LayerWeights, hidden: Tensor, turns: Tensor, batch: Batch
    ) -> Tensor:
        """One layer's attention before its output projection: [T, heads x head_dim]."""
        qkv = linear_reference(rms_norm_reference(hidden, layer.attention_norm), layer.qkv)
        if layer.qk_norm is not None:
            heads = qkv.view(len(qkv), self._layout.num_all, self._layout.head_dim)
            rotated = heads.narrow(1, 0, self._layout.num_rotated)
            rotated.copy_(rms_norm_reference(rotated, layer.qk_norm))
        cache = self._cache[index]
        rotary_kv_write_reference(qkv, turns, self._layout, cache, batch.slot_mapping)
        window = self._config.windows[index]
        return paged_attention_reference(qkv, cache, batch.plan, window)
