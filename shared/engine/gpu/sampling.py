"""The sampler on a GPU: the tokens of shared/engine/sampling.py, chosen where the logits are.

A round is staged (written on the host), launched (one copy to the device, kernels, one copy back)
and collected (one wait). Everything that varies is read from the device, so a launch over logits
that graphs write is itself a graph, replayed. One round at a time, but for a round that follows
another (`shared.engine.following`): it is staged on the other of two sides of the host's memory and
launched while the first computes.

Filters and adjustments cost only rounds that have them. Filters are one kernel more, and graphs of
their own; how many kernels adjustments take depends on the round, so it is launched one by one.
"""

import itertools
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from kernels.gpu import gumbel_choice as columns
from kernels.gpu.accept_drafts import accept_drafts
from kernels.gpu.filter_rows import filter_rows
from kernels.gpu.gumbel_choice import gumbel_choice, new_workspace, workspace_bytes
from kernels.gumbel_top import Top
from shared.engine.gpu.adjusted_rows import (
    MAX_CHANGES,
    AdjustedRows,
    Changes,
    Piece,
    changes_of_rows,
    pieces_of,
)
from shared.engine.gpu.sampler_buffers import NO_DRAFT, SamplerInputs, SamplerResults
from shared.engine.gpu.sampler_side import SamplerSide
from shared.engine.samplers import Collect
from shared.engine.sampling import NOTHING, Row, VerifyRequest
from shared.protocol.sampling import SamplingParams

MAX_RANKS = 4  # of a ranking: a guess and what may be right in its place
# Together they take every way through the kernels: plain, filtered, adjusted, and both.
_WARM_UP_PARAMS = tuple(
    SamplingParams(seed=0, temperature=0.7, top_p=top_p, repetition_penalty=penalty)
    for top_p in (1.0, 0.9)
    for penalty in (1.0, 1.1)
)


class _Kind(NamedTuple):
    """What makes launches differ."""

    side: int
    num_rows: int
    num_ranks: int
    has_filters: bool


class _Graphs(NamedTuple):
    """Launches over logits that are always in the same place."""

    logits: Tensor  # [max_rows, V]
    sizes: Sequence[int]  # ascending
    replays: dict[_Kind, Callable[[], None]]


class GpuSampler:
    """Chooses tokens of up to `max_rows` rows at a time. One caller at a time.

    Args:
        max_rows: draft tokens and one more, of all requests of a round.
        vocab_size: V, of every logits tensor.
        device: where the logits are; "cpu" only under Triton's interpreter.
        guesses: [max_rows] int32 on the device, where the best token of each ranked row stays for
            the next pass; None: nobody asks for it.
    """

    def __init__(
        self,
        *,
        max_rows: int,
        vocab_size: int,
        device: torch.device | str,
        guesses: Tensor | None = None,
    ) -> None:
        self._guesses = guesses
        self._max_rows = max_rows
        self._vocab_size = vocab_size
        self._device = torch.device(device)
        self._is_cuda = self._device.type == "cuda"
        self._workspace = new_workspace(max_rows, vocab_size, self._device)
        num_bytes = SamplerResults.num_bytes(max_rows, MAX_RANKS)
        self._device_results = torch.empty(num_bytes, dtype=torch.uint8, device=self._device)
        self._device_inputs = SamplerInputs.allocate(max_rows, self._device)
        # Graphs read and write the first.
        self._sides = [SamplerSide(*self._device_inputs, self._device_results) for _ in range(2)]
        self._side = self._sides[0]  # of the last round
        self._launched: SamplerResults | None = None  # of the last round
        self._adjusted_rows = AdjustedRows(max_rows, vocab_size, self._device)
        self._pieces: list[Piece] = []
        self._graphs: _Graphs | None = None

    def verify(self, logits: Tensor, requests: Sequence[VerifyRequest]) -> list[list[int]]:
        """See `shared.engine.sampling.verify`; logits [T, V] 16 bits or float32, on the device."""
        return self.begin_verify(logits, requests)()

    def begin_verify(self, logits: Tensor, requests: Sequence[VerifyRequest]) -> Collect:
        """See `shared.engine.samplers.Sampler`. Without requests nothing is launched."""
        if not requests:
            return list
        self.stage(requests)
        assert len(logits) == self._side.inputs.num_rows
        results = self.launch(logits)
        return partial(self._confirmed, self._side, results)

    def is_over(self) -> bool:
        """See `shared.engine.samplers.Sampler`."""
        return self._side.is_over()

    @property
    def launched(self) -> SamplerResults:
        """What the last round finds, on the device until the next is launched."""
        assert self._launched is not None
        return self._launched

    def begin_following(
        self, logits: Tensor, requests: Sequence[VerifyRequest], positions: Tensor
    ) -> Collect:
        """Start a round behind one that may not be collected yet, and is to be before this one.

        Args:
            logits: [T, V].
            requests: one a row; without drafts and adjustments, which depend on tokens before.
            positions: [T] int32 on the device: the last token that each row has seen.
        """
        self._side = self._other_side()
        self._stage(requests, [1] * len(requests), None)
        inputs, num_rows = self._side.inputs, len(logits)
        assert num_rows == inputs.num_rows == len(positions)
        assert not inputs.adjusted
        results = self._side.results(self._rounded(num_rows), 1)
        self._run(self._side, logits, results, has_filters=inputs.has_filters, positions=positions)
        self._launched = results
        self._side.note_launch()
        return partial(self._confirmed, self._side, results)

    def rank(self, logits: Tensor, rows: Sequence[Row], num: int) -> list[Top]:
        """See `shared.engine.sampling.rank`; however far behind, no token is left out.

        Without rows nothing is launched.
        """
        return self.begin_rank(logits, rows, num)()

    def begin_rank(
        self, logits: Tensor, rows: Sequence[Row], num: int, unread: Sequence[int] = ()
    ) -> Callable[[], list[Top]]:
        """Start a `rank`, also behind one that may not be collected yet, and is to be before.

        Args:
            logits: as those of `rank`.
            rows: the same.
            num: the same.
            unread: how many tokens come behind those of each row, unknown to the host; none.
                Rows that have any are without adjustments.
        """
        if not rows:
            return list
        self._side = self._other_side()
        self._stage(rows, [1] * len(rows), None, unread)
        return partial(self._tops, self._side, self.launch(logits, num))

    def _tops(self, side: SamplerSide, results: SamplerResults) -> list[Top]:
        side.wait()
        num_rows = side.inputs.num_rows
        token_ids, scores = results.host_token_ids[:num_rows], results.host_scores[:num_rows]
        ranked = zip(token_ids.tolist(), scores.tolist(), strict=True)
        if token_ids[:, -1].min() >= 0:  # every row has as many as were asked for
            return [Top(*pair) for pair in ranked]
        return [_top(*pair) for pair in ranked]

    def read_best(self) -> list[int]:
        """Wait for the last round: the best token of each of its rows, any of an unusable one."""
        self._side.wait()
        best: list[int] = self.launched.host_token_ids[:, 0].clip(min=0).tolist()
        return best

    def stage(self, requests: Sequence[VerifyRequest]) -> None:
        """Write on the host what the kernels need to know. The round before must be over."""
        counts: list[int] = []
        drafts: list[int] = []
        for request in requests:
            counts.append(len(request.draft_token_ids) + 1)
            drafts += request.draft_token_ids
            drafts.append(NO_DRAFT)
        self._side = self._sides[0]
        self._stage(requests, counts, drafts if len(drafts) > len(counts) else None)

    def launch(self, logits: Tensor, num: int = 1) -> SamplerResults:
        """Choose, and with `num` 1 accept; does not wait.

        Args:
            logits: [T, V] with at least the staged rows; the others are ignored.
            num: how many of each row are wanted, best first.

        Returns:
            Where it will be, in the first rows of the host's part.
        """
        side, inputs = self._side, self._side.inputs
        assert inputs.num_rows <= len(logits) <= self._max_rows
        assert logits.shape[1] == self._vocab_size
        assert num <= MAX_RANKS
        kind = self._captured_kind(logits, num)
        if kind is not None and self._graphs is not None:
            results = side.results(kind.num_rows, num)
            self._graphs.replays[kind]()
        else:
            results = side.results(self._rounded(len(logits)), num)
            self._run(side, logits, results, self._pieces, has_filters=inputs.has_filters)
        self._launched = results
        side.note_launch()
        return results

    def confirmed(self, results: SamplerResults) -> list[list[int]]:
        """Wait for the last launch: the confirmed tokens of each staged request."""
        return self._confirmed(self._side, results)

    def _confirmed(self, side: SamplerSide, results: SamplerResults) -> list[list[int]]:
        side.wait()
        inputs = side.inputs
        chosen = results.host_token_ids[: inputs.num_rows, 0].tolist()
        counts = results.host_num_confirmed[inputs.first_rows].tolist()
        spans = zip(inputs.starts, counts, strict=False)  # starts end with the number of rows
        return [chosen[start : start + count] for start, count in spans]

    def capture(self, logits: Tensor, sizes: Sequence[int], num_ranks: Sequence[int] = ()) -> None:
        """Make graphs of launches without adjustments over logits that stay where they are.

        Args:
            logits: [T, V], at most max_rows: what `launch` is given begins where this does.
            sizes: numbers of rows to make graphs for, ascending; a round takes the next larger.
            num_ranks: what `rank` will be asked for, on either side; verifying is always among it.
        """
        graphs = _Graphs(logits, [size for size in sizes if size <= len(logits)], {})
        kinds = [(0, 1), *itertools.product(range(len(self._sides)), num_ranks)]
        for size, (side, num), has_filters in itertools.product(
            reversed(graphs.sizes), kinds, (False, True)
        ):
            results = self._sides[side].results(size, num)
            launch = partial(
                self._run, self._sides[side], logits[:size], results, has_filters=has_filters
            )
            replay = _graph_of(launch) if self._is_cuda else launch
            graphs.replays[_Kind(side, size, num, has_filters)] = replay
        self._graphs = graphs

    def warm_up(self, dtypes: Iterable[torch.dtype], num_ranks: Sequence[int] = ()) -> None:
        """Compile and load all that a round may need, so that no round waits for it.

        Args:
            dtypes: of logits.
            num_ranks: what `rank` will be asked for.
        """
        for dtype in dtypes:
            logits = torch.zeros(1, self._vocab_size, dtype=dtype, device=self._device)
            for params in _WARM_UP_PARAMS:
                self.verify(logits, [VerifyRequest(params, [0], 1, ())])
                for num in num_ranks:
                    self.rank(logits, [Row(params, [0], 1)], num)

    def _stage(
        self,
        requests: Sequence[Row | VerifyRequest],
        counts: list[int],
        drafts: Sequence[int] | None,
        unread: Sequence[int] = (),
    ) -> None:
        self._side.wait()  # its last round may still be read, if nobody has asked for its tokens
        inputs = self._side.inputs
        words = inputs.stage(requests, counts, drafts, unread)
        self._pieces = []
        if inputs.adjusted:
            assert not any(unread[index] for index in inputs.adjusted if unread)
            rows: list[int] = []
            changes: list[Changes] = []
            for index in inputs.adjusted:
                start, end = inputs.starts[index : index + 2]
                own = np.empty(0, np.int64) if words is None else words[start : end - 1]
                changes += changes_of_rows(requests[index], own, self._vocab_size)
                rows += range(start, end)
            inputs.leave_out(rows)
            self._pieces = list(pieces_of(rows, changes, max(MAX_CHANGES, self._vocab_size)))

    def _other_side(self) -> SamplerSide:
        """The one that the last round is not on."""
        first, second = self._sides
        return second if self._side is first else first

    def _captured_kind(self, logits: Tensor, num: int) -> _Kind | None:
        """Of the graph that chooses from these logits what is staged, if there is one."""
        graphs = self._graphs
        if graphs is None or self._pieces:
            return None
        own = graphs.logits
        is_own = (
            logits.data_ptr() == own.data_ptr()
            and logits.dtype == own.dtype
            and logits.stride() == own.stride()
        )
        index = bisect_left(graphs.sizes, len(logits))
        if not is_own or index == len(graphs.sizes):
            return None
        side = self._sides.index(self._side)
        kind = _Kind(side, graphs.sizes[index], num, self._side.inputs.has_filters)
        return kind if kind in graphs.replays else None

    def _rounded(self, num_rows: int) -> int:
        """Few sizes, so that few views are made."""
        return min(self._max_rows, 1 << (num_rows - 1).bit_length())

    def _run(
        self,
        side: SamplerSide,
        logits: Tensor,
        results: SamplerResults,
        pieces: Sequence[Piece] = (),
        *,
        has_filters: bool,
        positions: Tensor | None = None,
    ) -> None:
        """Copies and kernels alone: without pieces, what a graph can hold."""
        inputs, num_rows = side.inputs, len(logits)
        num = results.choice.token_ids.shape[1]
        inputs.send(num_rows, has_filters=has_filters)
        if positions is not None:
            inputs.place(positions)
        if has_filters:
            filter_rows(logits, inputs.rows, inputs.filters)
        gumbel_choice(logits, inputs.rows, num=num, workspace=self._workspace, out=results.choice)
        for piece in pieces:
            self._choose_adjusted(piece, logits, results)
        if self._guesses is not None:
            self._guesses[:num_rows] = results.choice.token_ids[:num_rows, 0]
        if num == 1:
            chosen = results.choice.token_ids.view(-1)[:num_rows]
            accept_drafts(chosen, inputs.rows, out=results.num_confirmed)
        results.fetch()

    def _choose_adjusted(self, piece: Piece, logits: Tensor, results: SamplerResults) -> None:
        """Rows that the launch over all rows left out."""
        values = self._adjusted_rows.apply(logits, piece)
        places = torch.tensor(piece.rows).to(self._device)
        inputs = self._side.inputs
        rows = inputs.rows[places]
        rows[:, columns.IS_USED] = 1
        if inputs.has_filters:
            filter_rows(values, rows, inputs.filters[places])
        num = results.choice.token_ids.shape[1]
        choice = gumbel_choice(values, rows, num=num, workspace=self._workspace)
        results.choice.token_ids[places] = choice.token_ids
        results.choice.scores[places] = choice.scores


def sampler_bytes(max_rows: int, vocab_size: int) -> int:
    """What a sampler of such a size takes on the device, at most."""
    return (
        SamplerInputs.num_bytes(max_rows)
        + SamplerResults.num_bytes(max_rows, MAX_RANKS)
        + workspace_bytes(max_rows, vocab_size)
        + AdjustedRows.num_bytes(max_rows, vocab_size)
    )


def _graph_of(launch: Callable[[], None]) -> Callable[[], None]:
    """The same as one replay."""
    side: torch.cuda.Stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        launch()  # compiles and loads: a capture must not
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        launch()
    replay: Callable[[], None] = graph.replay
    return replay


def _top(token_ids: Sequence[int], scores: Sequence[float]) -> Top:
    found = [token_id for token_id in token_ids if token_id >= 0]
    return Top(found, list(scores[: len(found)])) if found else NOTHING
