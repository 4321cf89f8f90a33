"""A model on a GPU: spans in, logits out, on the device.

Rounds are graphs, but for the largest, of long prompts, which are launched op by op: there the work
hides the launches.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from kernels.gpu.attention_work import AttentionWork, max_items
from kernels.gpu.follow_rows import follow_rows
from kernels.gpu.take_guesses import take_guesses
from shared.engine.config import ModelConfig
from shared.engine.following import Follow
from shared.engine.gpu.cache import GpuCache
from shared.engine.gpu.decoder import GpuDecoder, GpuLayers
from shared.engine.gpu.graphs import RoundGraphs
from shared.engine.gpu.limits import GpuLimits, GraphKind, RoundShape, Tiling
from shared.engine.gpu.passes import passes
from shared.engine.gpu.round_buffers import MAX_COPIES, RoundBuffers
from shared.engine.gpu.sampler_buffers import SamplerResults
from shared.engine.gpu.weights import load_gpu_weights
from shared.engine.shape import ModelShape
from shared.engine.spans import Runner, Span

Progress = Callable[[str, int, int], None]  # what is being done, how much of it, of how much


class GpuRunner(Runner):
    """Decoder, paged cache and graphs of one model. One caller at a time."""

    def __init__(
        self, config: ModelShape, decoder: GpuLayers, cache: GpuCache, limits: GpuLimits
    ) -> None:
        device = cache.layers[0][0].device
        self.config = config
        self.device = device
        self._decoder = decoder
        self._cache = cache
        self._limits = limits
        self._buffers = RoundBuffers(
            max_rows=limits.max_rows,
            max_sequences=limits.max_sequences,
            max_blocks=-(-limits.max_model_len // limits.block_size),
            block_size=limits.block_size,
            device=device,
        )
        # The best token of each row of the last ranking, where a drafter's next pass finds it.
        num_rows = max(limits.max_rows, limits.max_sequences)
        self.guesses = torch.zeros(num_rows, dtype=torch.int32, device=device)
        self._copies: Sequence[tuple[int, int]] = ()  # to be made by the next pass
        self._works = {tiling: self._work(tiling) for tiling in limits.tilings}
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
        decoder = GpuDecoder(config, weights, cache, is_batch_invariant=limits.is_batch_invariant)
        runner = cls(config, decoder, cache, limits)
        if device.type == "cuda":
            runner.capture(progress)
        return runner

    @torch.inference_mode()
    def capture(self, progress: Progress) -> None:
        """Capture the graphs of all sizes; afterwards rounds that fit one are replayed."""
        rows = self._limits.graph_rows
        if not rows:
            return
        vocab_size, dtype = self.config.vocab_size, self._decoder.dtype
        logits = torch.empty(rows[-1], vocab_size, dtype=dtype, device=self.device)
        self._stage([Span([0], 0, [0], 1)])
        graphs = RoundGraphs(self._launch, logits, self._limits.graphs)
        graphs.capture(lambda done, total: progress("graphs_captured", done, total))
        self._graphs = graphs

    @property
    def graph_logits(self) -> Tensor | None:
        """[rows of the largest graph, V], where rounds in graphs leave theirs; None without any."""
        return None if self._graphs is None else self._graphs.logits

    @torch.inference_mode()
    def warm_up(self) -> Tensor:
        """Compile, load and allocate what rounds outside of graphs need; before the first of them.

        Chunks of a prompt of all sizes, with each work of attention, and a copied block. They write
        to block 0, which is nobody's yet, and leave it empty.

        Returns:
            Logits as such rounds give them.
        """
        limits = self._limits
        longest = min(limits.max_rows, limits.max_model_len)
        num_rows = min(2, longest)
        self._stage([Span([0] * num_rows, 0, [0], 1)])
        rows = torch.arange(num_rows, dtype=torch.int32, device=self.device)
        # A matrix product of no row, or of one, can be another kernel than of two.
        kinds = [(work, 1) for work in self._works.values()]
        for work, num_logits in (*kinds, (kinds[0][0], 0), (kinds[0][0], 2)):
            logit_rows = rows[:num_logits]
            self._decoder.forward(self._buffers, work, num_rows=num_rows, logit_rows=logit_rows)
        for size in (*(1 << power for power in range(2, longest.bit_length())), longest):
            table = [0] * -(-size // limits.block_size)
            logits = self.run([Span([0] * size, 0, table, 1)])
        self._cache.copy_blocks([(0, 0)])
        self._cache.clear_block(0)
        return logits

    @torch.inference_mode()
    def run(self, spans: Sequence[Span]) -> Tensor:
        """See Runner. The logits stay on the device, in the model's dtype, until the next call.

        A round of more rows, sequences or attention than was set aside is run in several passes.
        """
        shape = RoundShape.of(spans)
        if self._fits(spans, shape):
            return self._run_pass(spans, shape)
        fitting = [
            part for piece in passes(spans, self._limits.max_rows) for part in self._halves(piece)
        ]
        return torch.cat([self._run_pass(part, RoundShape.of(part)).clone() for part in fitting])

    def has_room(self, spans: Sequence[Span]) -> bool:
        """Whether one pass can compute all of it."""
        return self._fits(spans, RoundShape.of(spans))

    @torch.inference_mode()
    def run_following(
        self, spans: Sequence[Span], follows: Sequence[Follow], before: SamplerResults
    ) -> tuple[Tensor, Tensor]:
        """One pass of rows that go on where another round ends, which the device has yet to choose.

        Args:
            spans: see `shared.engine.following.Follower.begin`; there is room for them.
            follows: one a span.
            before: what that round finds.

        Returns:
            Logits as those of `run`, and the rows' positions, [rows] int32 until the next round.
        """
        buffers = self._buffers
        shape = self._stage(spans, follows)
        num_rows = shape.num_rows
        follow_rows(
            before.choice.token_ids.view(-1),
            before.num_confirmed,
            buffers.follows[:num_rows],
            buffers.attention,
            token_ids=buffers.token_ids,
            slots=buffers.slots,
            block_size=self._limits.block_size,
        )
        return self._run_staged(shape), buffers.positions[:num_rows]

    @torch.inference_mode()
    def run_guessed(self, spans: Sequence[Span], follows: Sequence[int]) -> Tensor | None:
        """One pass of a drafter of which some spans are one guess, which is among `guesses`.

        Args:
            spans: at least one.
            follows: one a span: see `shared.engine.ranking.Ranker.begin`.

        Returns:
            Logits as those of `run`; None if one pass has no room, and nothing is done.
        """
        assert self._limits.is_drafter
        shape = RoundShape.of(spans)
        if not self._fits(spans, shape):
            return None
        return self._run_pass(spans, shape, list(zip(follows, itertools.repeat(0), strict=False)))

    @torch.inference_mode()
    def clear_block(self, block_id: int) -> None:
        """Leave a block as if nothing had been written to it."""
        self._cache.clear_block(block_id)

    @torch.inference_mode()
    def copy_blocks(self, copies: Sequence[tuple[int, int]]) -> None:
        """See Runner. The next pass makes them: a launch less for the host."""
        if self._copies:  # these may be copies of those
            self._cache.copy_blocks(self._copies)
        self._copies = copies
        if len(copies) > MAX_COPIES:
            self._cache.copy_blocks(copies)
            self._copies = ()

    def _fits(self, spans: Sequence[Span], shape: RoundShape) -> bool:
        """Whether a pass has room for its rows, its sequences and its attention."""
        limits, group_size = self._limits, self.config.layout.group_size
        if shape.num_rows > limits.max_rows or shape.num_sequences > limits.max_sequences:
            return False
        tiling = limits.tiling_of(shape, group_size)
        room, block_m, chunk_len = len(self._works[tiling].items), tiling.block_m, tiling.chunk_len
        longest = [(shape.longest, shape.context)]
        most = max_items(longest, group_size=group_size, block_m=block_m, chunk_len=chunk_len)
        if most * shape.num_sequences <= room:  # nearly always: no need to count
            return True
        lens = [(len(span.token_ids), span.start + len(span.token_ids)) for span in spans]
        num_items = max_items(lens, group_size=group_size, block_m=block_m, chunk_len=chunk_len)
        return num_items <= room

    def _halves(self, spans: Sequence[Span]) -> Iterator[Sequence[Span]]:
        """Rows of a pass, halved until they fit one. One span always does."""
        if len(spans) == 1 or self._fits(spans, RoundShape.of(spans)):
            yield spans
        else:
            half = len(spans) // 2
            yield from self._halves(spans[:half])
            yield from self._halves(spans[half:])

    def _stage(self, spans: Sequence[Span], follows: Sequence[tuple[int, int]] = ()) -> RoundShape:
        shape = RoundShape.of(spans)
        self._buffers.stage(spans, shape, follows, self._copies)
        return shape

    def _run_pass(
        self, spans: Sequence[Span], shape: RoundShape, follows: Sequence[tuple[int, int]] = ()
    ) -> Tensor:
        self._buffers.stage(spans, shape, follows, self._copies)
        return self._run_staged(shape)

    def _run_staged(self, shape: RoundShape) -> Tensor:
        tiling = self._limits.tiling_of(shape, self.config.layout.group_size)
        return self._run_rows(shape.num_rows, GraphKind(tiling, shape.picks), shape.num_logits)

    def _run_rows(self, num_rows: int, kind: GraphKind, num_logits: int) -> Tensor:
        """The staged round; logits of every row, or of as many as are picked."""
        logits = None if self._graphs is None else self._graphs.replay(num_rows, kind)
        if logits is None:
            logits = self._forward(num_rows, kind, num_logits)
        self._copies = ()  # made; had it failed, the next pass would make them again
        return logits[:num_logits]

    def _launch(self, num_rows: int, kind: GraphKind, out: Tensor) -> None:
        self._forward(num_rows, kind, num_rows, out)

    def _forward(
        self, num_rows: int, kind: GraphKind, num_logits: int, out: Tensor | None = None
    ) -> Tensor:
        """Launch the staged round op by op; arguments as `_run_rows` has them."""
        buffers = self._buffers
        self._cache.copy_listed(buffers.copies)
        if self._limits.is_drafter:
            take_guesses(
                self.guesses.unsqueeze(1),
                buffers.follows,
                buffers.attention.query_starts,
                token_ids=buffers.token_ids,
            )
        return self._decoder.forward(
            buffers,
            self._works[kind.tiling],
            num_rows=num_rows,
            logit_rows=buffers.logit_rows[:num_logits] if kind.picks else None,
            out=out,
        )

    def _work(self, tiling: Tiling) -> AttentionWork:
        layout = self.config.layout
        return AttentionWork.allocate(
            max_items=self._limits.room_for_items(tiling, layout.group_size),
            max_rows=self._limits.max_rows,
            layout=layout,
            block_m=tiling.block_m,
            device=self.device,
            chunk_len=tiling.chunk_len,
            merges_apart=tiling.merges_apart,
        )
