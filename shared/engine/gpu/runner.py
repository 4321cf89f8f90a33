"""A model on a GPU: spans in, logits out, on the device.

Rounds of decode and verify rows are graphs; rounds with prefill chunks are launched op by op, since
there the work hides the launches.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kernels.gpu.attention_work import AttentionWork, max_items
from shared.engine.config import ModelConfig
from shared.engine.gpu.cache import GpuCache
from shared.engine.gpu.decoder import GpuDecoder
from shared.engine.gpu.graphs import RoundGraphs
from shared.engine.gpu.limits import TILES, GpuLimits
from shared.engine.gpu.passes import passes
from shared.engine.gpu.round_buffers import RoundBuffers
from shared.engine.gpu.weights import load_gpu_weights
from shared.engine.spans import Runner, Span

Progress = Callable[[str, int, int], None]  # what is being done, how much of it, of how much


class GpuRunner(Runner):
    """Decoder, paged cache and graphs of one model. One caller at a time."""

    def __init__(
        self, config: ModelConfig, decoder: GpuDecoder, cache: GpuCache, limits: GpuLimits
    ) -> None:
        device = cache.layers[0][0].device
        self.config = config
        self.device = device
        self._decoder = decoder
        self._cache = cache
        self._limits = limits
        self._buffers = RoundBuffers(
            max_rows=limits.max_pass_rows,
            max_sequences=limits.max_sequences,
            max_blocks=-(-limits.max_model_len // limits.block_size),
            block_size=limits.block_size,
            device=device,
        )
        self._works = {tile: self._work(tile) for tile in TILES}
        self._graphs: RoundGraphs | None = None

    @classmethod
    def load(
        cls,
        model_dir: Path,
        limits: GpuLimits,
        *,
        device: torch.device,
        dtype: torch.dtype,
        cache_dtype: torch.dtype | None = None,
        progress: Progress,
    ) -> "GpuRunner":
        """Load a Hugging Face directory, allocate its cache and capture its graphs.

        Args:
            model_dir: of the model.
            limits: of its rounds.
            device: where it lives.
            dtype: of weights, activations and logits.
            cache_dtype: of keys and values; None for the same, or float8 e4m3.
            progress: called while weights are loaded and graphs captured.

        Raises:
            ConfigError: the directory does not hold a model of the supported kinds.
        """
        config = ModelConfig.from_directory(model_dir)
        weights = load_gpu_weights(
            model_dir,
            config,
            device=device,
            dtype=dtype,
            progress=lambda done, total: progress("weights_loaded", done, total),
        )
        cache = GpuCache(
            config,
            num_blocks=limits.num_blocks,
            block_size=limits.block_size,
            dtype=cache_dtype or dtype,
            device=device,
        )
        runner = cls(config, GpuDecoder(config, weights, cache), cache, limits)
        if device.type == "cuda":
            runner.capture(progress)
        return runner

    @torch.inference_mode()
    def capture(self, progress: Progress) -> None:
        """Capture the graphs of all sizes; afterwards rounds that fit one are replayed."""
        rows, tiles = self._limits.graph_rows, self._limits.graph_tiles
        if not rows:
            return
        vocab_size, dtype = self.config.vocab_size, self._decoder.dtype
        logits = torch.empty(rows[-1], vocab_size, dtype=dtype, device=self.device)
        self._buffers.stage([Span([0], 0, [0], 1)])
        graphs = RoundGraphs(self._launch, logits, rows, tiles)
        graphs.capture(lambda done, total: progress("graphs_captured", done, total))
        self._graphs = graphs

    @torch.inference_mode()
    def run(self, spans: Sequence[Span]) -> Tensor:
        """See Runner. The logits stay on the device, in the model's dtype, until the next call.

        A round of more rows, sequences or attention than was set aside is run in several passes.
        """
        fitting = [part for piece in self._pieces(spans) for part in self._halves(piece)]
        if len(fitting) == 1:
            return self._run_pass(fitting[0])
        return torch.cat([self._run_pass(part).clone() for part in fitting])

    @torch.inference_mode()
    def copy_blocks(self, copies: Sequence[tuple[int, int]]) -> None:
        """See Runner."""
        self._cache.copy_blocks(copies)

    def _pieces(self, spans: Sequence[Span]) -> Iterator[Sequence[Span]]:
        """A round cut where it has more rows than a pass."""
        most = self._limits.max_pass_rows
        if sum(len(span.token_ids) for span in spans) <= most:
            yield spans
        else:
            yield from passes(spans, most)

    def _halves(self, spans: Sequence[Span]) -> Iterator[Sequence[Span]]:
        """A pass, halved until its sequences and its attention have room. One span always has."""
        tile = self._tile(spans)
        is_fitting = len(spans) <= self._limits.max_sequences and (
            self._num_items(spans, tile) <= len(self._works[tile].items)
        )
        if is_fitting or len(spans) == 1:
            yield spans
        else:
            half = len(spans) // 2
            yield from self._halves(spans[:half])
            yield from self._halves(spans[half:])

    def _run_pass(self, spans: Sequence[Span]) -> Tensor:
        tile, fixed_rows = self._tile(spans), self._limits.fixed_rows
        shape = self._buffers.stage(spans)
        if fixed_rows is not None:
            return self._run_rows(fixed_rows, tile)[self._logit_rows(spans)]
        if all(span.num_logits == len(span.token_ids) for span in spans):
            return self._run_rows(shape.num_rows, tile)
        return self._decoder.forward(
            self._buffers,
            self._works[tile],
            num_rows=shape.num_rows,
            logit_rows=self._logit_rows(spans),
        )

    def _run_rows(self, num_rows: int, tile: int) -> Tensor:
        """The staged round, with logits of every row."""
        logits = None if self._graphs is None else self._graphs.replay(num_rows, tile)
        if logits is not None:
            return logits
        return self._decoder.forward(self._buffers, self._works[tile], num_rows=num_rows)

    def _logit_rows(self, spans: Sequence[Span]) -> Tensor:
        """The rows of a round whose logits are asked for, int64 on the device."""
        rows: list[int] = []
        start = 0
        for span in spans:
            start += len(span.token_ids)
            rows += range(start - span.num_logits, start)
        return torch.from_numpy(np.array(rows, np.int64)).to(self.device)

    def _launch(self, num_rows: int, tile: int, out: Tensor) -> None:
        self._decoder.forward(self._buffers, self._works[tile], num_rows=num_rows, out=out)

    def _tile(self, spans: Sequence[Span]) -> int:
        longest = max(len(span.token_ids) for span in spans)
        return self._limits.tile_of(longest, self.config.layout.group_size)

    def _num_items(self, spans: Sequence[Span], tile: int) -> int:
        lens = ((len(span.token_ids), span.start + len(span.token_ids)) for span in spans)
        return max_items(lens, group_size=self.config.layout.group_size, block_m=tile)

    def _work(self, tile: int) -> AttentionWork:
        layout = self.config.layout
        return AttentionWork.allocate(
            max_items=self._limits.room_for_items(tile, layout.group_size),
            max_rows=self._limits.max_pass_rows,
            layout=layout,
            block_m=tile,
            device=self.device,
        )
