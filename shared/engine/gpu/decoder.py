"""The decoder of the Llama family on a GPU: the passes of `shared.engine.decoder`, op by op.

Launches only: nothing is read back, and what changes from round to round is read from the device,
so that a pass can be captured in a graph.
"""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  # torch's own name for it

from kernels.gpu.attention_work import AttentionWork, plan_attention_work
from kernels.gpu.dependent_launch import HOPPER
from kernels.gpu.invariant_linear import ROW_ALIGNMENT, invariant_linear
from kernels.gpu.rms_norm import add_rms_norm, rms_norm, row_squares
from kernels.gpu.rotary_kv_write import rotary_kv_write
from kernels.gpu.silu_mul import silu_mul
from kernels.gpu.skinny_gate import skinny_gate
from kernels.gpu.skinny_linear import MAX_ROWS, num_parts_of, skinny_linear
from kernels.gpu.skinny_qkv import skinny_qkv
from kernels.gpu.verify_attention import verify_attention
from shared.engine.config import ModelConfig
from shared.engine.gpu.cache import GpuCache
from shared.engine.gpu.linear import LibraryLinear
from shared.engine.gpu.round_buffers import RoundBuffers
from shared.engine.gpu.weights import GpuLayerWeights, GpuWeights, folds_norms
from shared.engine.rope import rope_table

Linear = Callable[..., Tensor]

# Rows up to which our own product, on the GPU that its tiles were chosen on, is faster than the
# library's.
MAX_OWN_ROWS = 64


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
            logit_rows: int32 rows whose logits are asked for; None for all.
            out: where logits go.
        """
        ...


class GpuDecoder(GpuLayers):
    """A model's layers, bound to its weights and its cache.

    Args:
        config: of the model.
        weights: of all layers.
        cache: of all layers.
        is_batch_invariant: whether a row's bits may depend on its own sequence alone.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: GpuWeights,
        cache: GpuCache,
        *,
        is_batch_invariant: bool = False,
    ) -> None:
        # One product and one way for any number of rows, or what is fastest for each.
        self._is_batch_invariant = is_batch_invariant
        self._max_few_rows = 0 if is_batch_invariant else MAX_ROWS
        sizes = config.hidden_size, config.intermediate_size
        is_aligned = not any(size % ROW_ALIGNMENT for size in sizes)
        is_own_fast = is_aligned and _is_hopper(weights.embedding)
        self._max_own_rows = MAX_OWN_ROWS if is_own_fast else 0
        self._config = config
        self._layout = config.layout
        self._weights = weights
        self._cache = cache
        table = torch.view_as_real(rope_table(config.rope, config.head_dim, config.max_model_len))
        device = weights.embedding.device
        self._library_linear = LibraryLinear(weights.embedding.dtype, device)
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
        lm_head = self._weights.lm_head
        plan_attention_work(buffers.attention, work)
        residual = F.embedding(buffers.token_ids[:num_rows], self._weights.embedding)
        if num_rows <= self._max_few_rows and folds_norms(self.dtype):
            normed = self._few_rows(residual, buffers, work)
            normed = normed if logit_rows is None else normed[logit_rows]
            return skinny_linear(normed, lm_head, out=out)
        linear = self._linear_of(num_rows)
        normed = self._many_rows(residual, buffers, work, logit_rows, linear)
        return linear(normed, lm_head, out=out)

    def _linear_of(self, num_rows: int) -> Linear:
        """The product of a pass of so many rows."""
        is_own = self._is_batch_invariant or num_rows <= self._max_own_rows
        return invariant_linear if is_own else self._library_linear

    def _few_rows(self, residual: Tensor, buffers: RoundBuffers, work: AttentionWork) -> Tensor:
        """All layers, with norms and gates inside the products; rows ready for the head."""
        weights, eps = self._weights, self._config.rms_norm_eps
        squares = row_squares(residual)
        num_parts = num_parts_of(residual.shape[1])
        others = squares.new_empty(len(residual), num_parts)
        for index, layer in enumerate(weights.layers):
            qkv = self._few_qkv(index, layer, residual, squares, buffers)
            squares = others
            mixed = self._attend(index, qkv, buffers, work)
            skinny_linear(
                mixed, layer.output, bias=layer.output_bias,
                residual=residual, out=residual, squares_out=squares,
            )  # fmt: skip
            inner = skinny_gate(
                residual, layer.gate_up, bias=layer.gate_up_bias, squares=squares, eps=eps
            )
            skinny_linear(
                inner, layer.down, bias=layer.down_bias,
                residual=residual, out=residual, squares_out=squares,
            )  # fmt: skip
        return rms_norm(residual, weights.final_norm, eps)

    def _many_rows(
        self,
        residual: Tensor,
        buffers: RoundBuffers,
        work: AttentionWork,
        logit_rows: Tensor | None,
        linear: Linear,
    ) -> Tensor:
        """All layers, op by op; the rows asked for, ready for the head."""
        weights, eps = self._weights, self._config.rms_norm_eps
        normed = rms_norm(residual, weights.layers[0].attention_norm, eps)
        last = len(weights.layers) - 1
        for index, layer in enumerate(weights.layers):
            qkv = linear(normed, layer.qkv, layer.qkv_bias)
            self._turn(index, layer, qkv, buffers)
            mixed = self._attend(index, qkv, buffers, work)
            if index == last and logit_rows is not None:
                residual, mixed = residual[logit_rows], mixed[logit_rows]
                normed = torch.empty_like(residual)
            mixed = linear(mixed, layer.output, layer.output_bias)
            add_rms_norm(mixed, residual, layer.mlp_norm, eps, normed)
            inner = silu_mul(linear(normed, layer.gate_up, layer.gate_up_bias))
            following = (
                weights.final_norm if index == last else weights.layers[index + 1].attention_norm
            )
            inner = linear(inner, layer.down, layer.down_bias)
            add_rms_norm(inner, residual, following, eps, normed)
        return normed

    def _few_qkv(
        self,
        index: int,
        layer: GpuLayerWeights,
        residual: Tensor,
        squares: Tensor,
        buffers: RoundBuffers,
    ) -> Tensor:
        """Queries of few rows, turned; their keys and values are in the cache."""
        eps = self._config.rms_norm_eps
        if layer.qk_norm is not None:  # of whole heads: more than a program has
            qkv = skinny_linear(residual, layer.qkv, bias=layer.qkv_bias, squares=squares, eps=eps)
            self._turn(index, layer, qkv, buffers)
            return qkv
        return skinny_qkv(
            residual, layer.qkv, self._cos_sin, buffers.positions, buffers.slots,
            *self._cache.layers[index], self._layout,
            bias=layer.qkv_bias, squares=squares, eps=eps,
        )  # fmt: skip

    def _turn(self, index: int, layer: GpuLayerWeights, qkv: Tensor, buffers: RoundBuffers) -> None:
        """Queries by their positions, and keys too, which go to the cache with their values."""
        num_rows = len(qkv)
        rotary_kv_write(
            qkv,
            self._cos_sin,
            buffers.positions[:num_rows],
            buffers.slots[:num_rows],
            *self._cache.layers[index],
            self._layout,
            qk_norm=layer.qk_norm,
            eps=self._config.rms_norm_eps,
        )

    def _attend(
        self, index: int, qkv: Tensor, buffers: RoundBuffers, work: AttentionWork
    ) -> Tensor:
        """One layer's attention before its output projection: [T, heads x head_dim]."""
        layout = self._layout
        keys, values = self._cache.layers[index]
        mixed = qkv.new_empty(len(qkv), layout.num_heads * layout.head_dim)
        verify_attention(
            qkv,
            keys,
            values,
            buffers.attention,
            work,
            layout,
            scale=layout.head_dim**-0.5,
            window=self._config.windows[index],
            soft_cap=None,
            tree_bits=None,
            out=mixed,
        )
        return mixed


def _is_hopper(weight: Tensor) -> bool:
    """Whether a weight of 16 bits is on such a GPU, or a later one."""
    if not weight.is_cuda or weight.dtype == torch.float32:
        return False
    return torch.cuda.get_device_capability(weight.device) >= HOPPER
