"""transformers' modules on a GPU: our cache, attention, rounds and graphs; the rest is theirs."""

from typing import Any

import structlog
import torch
from torch import Tensor

from kernels.gpu.attention_work import AttentionWork, plan_attention_work
from kernels.gpu.rotary_kv_write import rotary_kv_write
from kernels.gpu.verify_attention import verify_attention
from shared.engine.foreign.config import ForeignConfig
from shared.engine.foreign.decoder import fused_rows, unpacked_heads
from shared.engine.foreign.interface import AttentionCall, attending, logits_of
from shared.engine.foreign.probe import probe
from shared.engine.gpu.cache import GpuCache
from shared.engine.gpu.decoder import GpuLayers
from shared.engine.gpu.limits import GpuLimits
from shared.engine.gpu.requirements import check_group_size
from shared.engine.gpu.round_buffers import RoundBuffers
from shared.engine.gpu.runner import GpuRunner, Progress

_log = structlog.get_logger()


class ForeignGpuDecoder(GpuLayers):
    """A model's layers, bound to its cache."""

    def __init__(self, config: ForeignConfig, model: Any, cache: GpuCache, max_rows: int) -> None:  # noqa: ANN401  # transformers' own
        self._config = config
        self._model = model
        self._cache = cache.layers
        # The model rotates itself. The op that writes the cache turns by nothing then.
        device = cache.layers[0][0].device
        half = config.head_dim // 2
        self._no_turn = torch.stack([torch.ones(1, half), torch.zeros(1, half)], dim=1).to(device)
        self._no_positions = torch.zeros(max_rows, dtype=torch.int32, device=device)

    @property
    def dtype(self) -> torch.dtype:
        """See GpuLayers."""
        dtype: torch.dtype = self._model.dtype
        return dtype

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
        plan_attention_work(buffers.attention, work)

        def attend(call: AttentionCall) -> Tensor:
            return self._attend(call, buffers, work)

        token_ids, positions = (
            words[:num_rows].long() for words in (buffers.token_ids, buffers.positions)
        )
        with attending(attend):
            logits = logits_of(self._model, token_ids, positions, logit_rows)
        return logits if out is None else out.copy_(logits)

    def _attend(self, call: AttentionCall, buffers: RoundBuffers, work: AttentionWork) -> Tensor:
        layer, layout = self._config.layers[call.layer], self._config.layout
        keys, values = self._cache[call.layer]
        qkv = fused_rows(call, layout, keys.dtype)
        num_rows = len(qkv)
        rotary_kv_write(
            qkv,
            self._no_turn,
            self._no_positions,
            buffers.slots[:num_rows],
            keys,
            values,
            layout,
            qk_norm=None,
            eps=0.0,
        )
        # Rows of nobody stay as they are, and what the model does with them must not be NaN.
        out = qkv.new_zeros(num_rows, layout.num_heads * layout.head_dim)
        verify_attention(
            qkv,
            keys,
            values,
            buffers.attention,
            work,
            layout,
            scale=layer.scale,
            window=layer.window,
            soft_cap=layer.soft_cap,
            out=out,
        )
        return unpacked_heads(out, layout, layer.value_dim).to(call.queries.dtype)


def foreign_gpu_runner(
    config: ForeignConfig,
    model: Any,  # noqa: ANN401  # transformers' own
    limits: GpuLimits,
    progress: Progress,
) -> GpuRunner:
    """Allocate a cache, capture graphs where the model allows it, and prove what comes out.

    Args:
        config: from `foreign_config`.
        model: on its device.
        limits: of rounds.
        progress: called while graphs are captured.

    Raises:
        ConfigError: the kernels cannot run it, or the logits are not the model's own.
    """
    check_group_size(config.model_type, config.layout.num_heads, config.num_kv_heads)
    cache = GpuCache(
        config,
        num_blocks=limits.num_blocks,
        block_size=limits.block_size,
        dtype=model.dtype,
        device=model.device,
    )
    decoder = ForeignGpuDecoder(config, model, cache, limits.max_rows)
    runner = GpuRunner(config, decoder, cache, limits)
    if model.device.type == "cuda":
        _capture(runner, progress)
    probe(
        model,
        runner,
        config,
        num_blocks=limits.num_blocks,
        block_size=limits.block_size,
    )
    return runner


def _capture(runner: GpuRunner, progress: Progress) -> None:
    """Some models read back what they compute, experts of a mixture say: these run op by op."""
    try:
        runner.capture(progress)
    except RuntimeError as error:
        torch.cuda.synchronize()
        _log.warning("graphs_not_captured", reason=str(error).splitlines()[0])
