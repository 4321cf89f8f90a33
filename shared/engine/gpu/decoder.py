"""The decoder of the Llama family on a GPU: the passes of `shared.engine.decoder`, op by op.

Launches only: nothing is read back, and what changes from round to round is read from the device,
so that a pass can be captured in a graph.
"""

from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  # torch's own name for it

from kernels.gpu.attention_work import AttentionWork, plan_attention_work
from kernels.gpu.rms_norm import add_rms_norm, rms_norm
from kernels.gpu.rotary_kv_write import rotary_kv_write
from kernels.gpu.silu_mul import silu_mul
from kernels.gpu.skinny_linear import is_faster, skinny_linear
from kernels.gpu.verify_attention import verify_attention
from shared.engine.config import ModelConfig
from shared.engine.gpu.cache import GpuCache
from shared.engine.gpu.round_buffers import RoundBuffers
from shared.engine.gpu.weights import GpuLayerWeights, GpuWeights
from shared.engine.rope import rope_table


class GpuLayers(Protocol):
    """A model's layers, bound to a cache: what `shared.engine.gpu.runner` launches."""

    @property
    def dtype(self) -> torch.dtype:
        """Of weights, activations and logits."""
        ...

    def forward(
        self,
        buffers: RoundBuffers,
        work: AttentionWork,
        *,
        num_rows: int,
        logit_rows: Tensor | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        """Write keys and values of the first `num_rows` rows; logits [rows asked for, V].

        Args:
            buffers: the round.
            work: of this round's tiles; made here.
            num_rows: padding included.
            logit_rows: int64 rows whose logits are asked for; None for all.
            out: where logits go.
        """
        ...


class GpuDecoder(GpuLayers):
    """A model's layers, bound to its weights and its cache."""

    def __init__(self, config: ModelConfig, weights: GpuWeights, cache: GpuCache) -> None:
        self._config = config
        self._layout = config.layout
        self._weights = weights
        self._cache = cache
        table = torch.view_as_real(rope_table(config.rope, config.head_dim, config.max_model_len))
        device = weights.embedding.device
        self._cos_sin = table.transpose(1, 2).contiguous().to(device)  # [positions, 2, D / 2]

    @property
    def dtype(self) -> torch.dtype:
        """See GpuLayers."""
        return self._weights.embedding.dtype

    def forward(
        self,
        buffers: RoundBuffers,
        work: AttentionWork,
        *,
        num_rows: int,
        logit_rows: Tensor | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        """See GpuLayers."""
        weights, eps = self._weights, self._config.rms_norm_eps
        plan_attention_work(buffers.attention, work)
        residual = F.embedding(buffers.token_ids[:num_rows], weights.embedding)
        normed = torch.empty_like(residual)
        rms_norm(residual, weights.layers[0].attention_norm, eps, normed)
        last = len(weights.layers) - 1
        for index, layer in enumerate(weights.layers):
            mixed = self._attention(index, layer, normed, buffers, work)
            if index == last and logit_rows is not None:
                residual, mixed = residual[logit_rows], mixed[logit_rows]
                normed = torch.empty_like(residual)
            self._add(mixed, layer.output, layer.output_bias, residual, layer.mlp_norm, normed)
            gate_up = F.linear(normed, layer.gate_up, layer.gate_up_bias)
            inner = silu_mul(gate_up)
            following = (
                weights.final_norm if index == last else weights.layers[index + 1].attention_norm
            )
            self._add(inner, layer.down, layer.down_bias, residual, following, normed)
        if out is None:
            return F.linear(normed, weights.lm_head)
        return torch.mm(normed, weights.lm_head.t(), out=out)

    def _add(  # noqa: PLR0917 -- one line of the formula
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        residual: Tensor,
        norm: Tensor,
        normed: Tensor,
    ) -> None:
        """residual += x W^T + b, and normed = its norm: what ends each half of a layer."""
        eps = self._config.rms_norm_eps
        if is_faster(weight, len(x)):
            skinny_linear(x, weight, bias=bias, residual=residual, out=residual)
            rms_norm(residual, norm, eps, normed)
        else:
            add_rms_norm(F.linear(x, weight, bias), residual, norm, eps, normed)

    def _attention(
        self,
        index: int,
        layer: GpuLayerWeights,
        normed: Tensor,
        buffers: RoundBuffers,
        work: AttentionWork,
    ) -> Tensor:
        """One layer's attention before its output projection: [T, heads x head_dim]."""
        config, layout = self._config, self._layout
        num_rows = len(normed)
        qkv = F.linear(normed, layer.qkv, layer.qkv_bias)
        keys, values = self._cache.layers[index]
        rotary_kv_write(
            qkv,
            self._cos_sin,
            buffers.positions[:num_rows],
            buffers.slots[:num_rows],
            keys,
            values,
            layout,
            qk_norm=layer.qk_norm,
            eps=config.rms_norm_eps,
        )
        mixed = qkv.new_empty(num_rows, layout.num_heads * layout.head_dim)
        verify_attention(
            qkv,
            keys,
            values,
            buffers.attention,
            work,
            layout,
            scale=layout.head_dim**-0.5,
            window=config.windows[index],
            soft_cap=None,
            tree_bits=None,
            out=mixed,
        )
        return mixed
