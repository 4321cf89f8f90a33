"""A model on a GPU: spans in, logits out, on the device.

Rounds of decode and verify rows are graphs; rounds with prefill chunks are launched op by op, since
there the work hides the launches.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kernels.gpu.attention_work import AttentionWork, max_items
from shared.engine.config import ModelConfig
from shared.engine.gpu.cache import GpuCache
from shared.engine.gpu.decoder import GpuDecoder
from shared.engine.gpu.graphs import SIZES, RoundGraphs
from shared.engine.gpu.passes import passes
from shared.engine.gpu.round_buffers import RoundBuffers
from shared.engine.gpu.weights import load_gpu_weights
from shared.engine.spans import Runner, Span

DECODE_TILE, VERIFY_TILE, PREFILL_TILE = 16, 32, 128  # query rows x heads a tile of attention
TILES = (DECODE_TILE, VERIFY_TILE, PREFILL_TILE)
GRAPH_TILES = (DECODE_TILE, VERIFY_TILE)
MAX_GRAPH_ROWS = 512

Progress = Callable[[str, int, int], None]  # what is being done, how much of it, of how much


@dataclass(frozen=True, slots=True)
class GpuLimits:
    """Sizes that buffers and graphs are made for."""

    num_blocks: int
    block_size: int
    max_rows: int  # of a round
    max_sequences: int  # of a round
    max_model_len: int
    max_graph_rows: int = MAX_GRAPH_ROWS
    # So many rows in every pass, whatever is asked for: then a row's bits depend on its own
    # sequence alone. None: as many as there are.
    fixed_rows: int | None = None


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
            max_rows=max(limits.max_rows, limits.fixed_rows or 0),
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
        progress: Progress,
    ) -> "GpuRunner":
        """Load a Hugging Face directory, allocate its cache and capture its graphs.

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
            dtype=dtype,
            device=device,
        )
        runner = cls(config, GpuDecoder(config, weights, cache), cache, limits)
        if device.type == "cuda":
            runner.capture(progress)
        return runner

    @torch.inference_mode()
    def capture(self, progress: Progress) -> None:
        """Capture the graphs of all sizes; afterwards rounds that fit one are replayed."""
        limits = self._limits
        num_rows = limits.fixed_rows or min(limits.max_graph_rows, limits.max_rows)
        vocab_size, dtype = self.config.vocab_size, self._cache.layers[0][0].dtype
        logits = torch.empty(num_rows, vocab_size, dtype=dtype, device=self.device)
        self._buffers.stage([Span([0], 0, [0], 1)])
        is_fixed = limits.fixed_rows is not None
        sizes = [num_rows] if is_fixed else [size for size in SIZES if size <= num_rows]
        tiles = [VERIFY_TILE] if is_fixed else GRAPH_TILES
        graphs = RoundGraphs(self._launch, logits, sizes, tiles)
        graphs.capture(lambda done, total: progress("graphs_captured", done, total))
        self._graphs = graphs

    @torch.inference_mode()
    def run(self, spans: Sequence[Span]) -> Tensor:
        """See Runner. The logits stay on the device, in the model's dtype, until the next call.

        A round whose attention needs more room than was set aside is run in halves.
        """
        if self._limits.fixed_rows is not None:
            return self._run_fixed(spans, self._limits.fixed_rows)
        tile = self._tile(max(len(span.token_ids) for span in spans))
        if len(spans) > 1 and self._num_items(spans, tile) > len(self._works[tile].items):
            half = len(spans) // 2
            return torch.cat([self.run(spans[:half]).clone(), self.run(spans[half:])])
        shape = self._buffers.stage(spans)
        if all(span.num_logits == len(span.token_ids) for span in spans):
            return self._run_rows(shape.num_rows, tile)
        return self._decoder.forward(
            self._buffers,
            self._works[tile],
            num_rows=shape.num_rows,
            logit_rows=self._logit_rows(spans),
        )

    @torch.inference_mode()
    def copy_blocks(self, copies: Sequence[tuple[int, int]]) -> None:
        """See Runner."""
        self._cache.copy_blocks(copies)

    def _run_fixed(self, spans: Sequence[Span], num_rows: int) -> Tensor:
        """A round in passes that all have the same number of rows, whoever they are."""
        logits = []
        for piece in passes(spans, num_rows):
            self._buffers.stage(piece)
            rows = self._logit_rows(piece)
            logits.append(self._run_rows(num_rows, VERIFY_TILE)[rows])
        return torch.cat(logits)

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

    def _tile(self, longest: int) -> int:
        """The smallest tile that holds the longest span, or the one for verify rows or prefill."""
        packed = longest * self.config.layout.group_size
        if packed <= DECODE_TILE:
            return DECODE_TILE
        return VERIFY_TILE if packed <= 4 * VERIFY_TILE else PREFILL_TILE

    def _num_items(self, spans: Sequence[Span], tile: int) -> int:
        lens = ((len(span.token_ids), span.start + len(span.token_ids)) for span in spans)
        return max_items(lens, group_size=self.config.layout.group_size, block_m=tile)

    def _work(self, tile: int) -> AttentionWork:
        """Room for the longest span of this tile alone, and for a full cache of decoding rows.

        Sequences that share a prefix can ask for more than the cache holds; such a round is split.
        """
        limits, layout = self._limits, self.config.layout
        longest = limits.max_rows if tile == PREFILL_TILE else max(1, 4 * tile // layout.group_size)
        longest = max(longest, limits.fixed_rows or 0)
        alone = (min(longest, limits.max_model_len), limits.max_model_len)
        share = limits.num_blocks * limits.block_size // limits.max_sequences
        each = (1, min(limits.max_model_len, share))
        most = max(
            max_items(lens, group_size=layout.group_size, block_m=tile)
            for lens in ([alone], [each] * limits.max_sequences)
        )
        return AttentionWork.allocate(
            max_items=most,
            max_rows=max(limits.max_rows, limits.fixed_rows or 0),
            layout=layout,
            block_m=tile,
            device=self.device,
        )
