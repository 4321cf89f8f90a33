"""The sampler on a GPU: the tokens of shared/engine/sampling.py, chosen where the logits are.

A round is staged (parameters of all rows, one copy to the device), launched (kernels alone, which
read everything from the device, so that a graph can hold them), fetched (one copy back) and
collected (one wait). One round at a time: where rounds overlap, two samplers take turns.

Filters and adjustments cost only rounds that have them: such a round is longer by their kernels,
whose number depends on what was staged, so a graph can only hold a round that `is_plain`.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kernels.gpu import filter_rows as filter_columns
from kernels.gpu import gumbel_choice as columns
from kernels.gpu.accept_drafts import accept_drafts
from kernels.gpu.filter_rows import filter_rows
from kernels.gpu.gumbel_choice import Choice, gumbel_choice, new_choice, new_workspace
from kernels.gumbel_top import Top
from shared.engine.adjustments import changes_logits
from shared.engine.filters import has_filters
from shared.engine.gpu.adjusted_rows import AdjustedRows, Changes, changes_of_rows
from shared.engine.samplers import Collect
from shared.engine.sampling import NOTHING, Row, VerifyRequest
from shared.protocol.sampling import SamplingParams

Ids = NDArray[np.int64]
NO_DRAFT = -1
MAX_TOP_K = 2**31  # more than any vocabulary: off


class GpuSampler:
    """Chooses tokens of up to `max_rows` rows at a time. One caller at a time.

    Args:
        max_rows: draft tokens and one more, of all requests of a round.
        vocab_size: V, of every logits tensor.
        device: where the logits are; "cpu" only under Triton's interpreter.
    """

    def __init__(self, *, max_rows: int, vocab_size: int, device: torch.device | str) -> None:
        self._max_rows = max_rows
        self._vocab_size = vocab_size
        self._device = torch.device(device)
        self._is_cuda = self._device.type == "cuda"
        self._host = _Inputs(max_rows, "cpu", is_pinned=self._is_cuda)
        self._inputs = _Inputs(max_rows, self._device)
        self._workspace = new_workspace(max_rows, vocab_size, self._device)
        # First row: chosen tokens; second: how many of them each request confirms.
        shape = (2, max_rows)
        self._results = torch.empty(shape, dtype=torch.int32, device=self._device)
        self._host_results = torch.empty(shape, dtype=torch.int32, pin_memory=self._is_cuda)
        scores = torch.empty((max_rows, 1), dtype=torch.float64, device=self._device)
        self._choice = Choice(self._results[0].view(max_rows, 1), scores)
        self._staged = _new_event() if self._is_cuda else None
        self._fetched = _new_event() if self._is_cuda else None
        self._starts: list[int] = [0]
        self._has_filters = False
        self._adjusted_rows: AdjustedRows | None = None

    @property
    def is_plain(self) -> bool:
        """Whether what is staged needs neither filters nor adjustments."""
        return not self._has_filters and self._adjusted_rows is None

    def verify(self, logits: Tensor, requests: Sequence[VerifyRequest]) -> list[list[int]]:
        """See `shared.engine.sampling.verify`; logits [T, V] bf16 or float32, on the device."""
        return self.begin_verify(logits, requests)()

    def begin_verify(self, logits: Tensor, requests: Sequence[VerifyRequest]) -> Collect:
        """See `shared.engine.samplers.Sampler`."""
        assert len(logits) == sum(len(request.draft_token_ids) + 1 for request in requests)
        self.stage(requests)
        self.launch(logits)
        self.fetch()
        return self.collect

    def rank(self, logits: Tensor, rows: Sequence[Row], num: int) -> list[Top]:
        """See `shared.engine.sampling.rank`; however far behind, no token is left out."""
        requests = [VerifyRequest(row.params, row.token_ids, row.prompt_len, ()) for row in rows]
        self.stage(requests)
        choice = new_choice(len(rows), num, self._device)
        self._choose(logits, num, choice)
        packed = torch.cat([choice.scores, choice.token_ids.double()], dim=1)
        return [_top(numbers[num:], numbers[:num]) for numbers in packed.tolist()]

    def stage(self, requests: Sequence[VerifyRequest]) -> None:
        """Send what the kernels need to know to the device; does not wait for it."""
        if self._staged is not None:
            self._staged.synchronize()  # the last round's copy still read the buffer
        seeds, temperatures, lengths = [], [], []
        drafts: list[int] = []
        starts = [0]
        filtered, adjusted = [], []
        for index, request in enumerate(requests):
            params, num_tokens = request.params, len(request.token_ids)
            seeds.append(params.seed)
            temperatures.append(params.temperature)
            lengths.append(num_tokens)
            drafts += request.draft_token_ids
            drafts.append(NO_DRAFT)
            starts.append(len(drafts))
            if has_filters(params) and params.temperature > 0:
                filtered.append(index)
            if changes_logits(params, num_tokens - request.prompt_len):
                adjusted.append(index)
        assert len(drafts) <= self._max_rows
        self._starts = starts
        words = _as_words(drafts)
        self._host.fill(seeds, temperatures, lengths, words, starts)
        self._has_filters = bool(filtered)
        if filtered:
            self._host.fill_filters({index: requests[index].params for index in filtered}, starts)
        self._adjusted_rows = self._adjust(requests, adjusted, words) if adjusted else None
        self._inputs.packed.copy_(self._host.packed, non_blocking=True)
        if self._staged is not None:
            self._staged.record()

    def launch(self, logits: Tensor) -> None:
        """Choose and accept: kernels on the current stream, and nothing else.

        Args:
            logits: [T, V] bf16 or float32 with at least the staged rows; the others are ignored.
        """
        num_rows = len(logits)
        assert self._starts[-1] <= num_rows <= self._max_rows
        assert logits.shape[1] == self._vocab_size
        self._choose(logits, 1, self._choice)
        accept_drafts(
            self._results[0],
            self._inputs.drafts,
            self._inputs.row_starts[: num_rows + 1],
            out=self._results[1, :num_rows],
        )

    def fetch(self) -> None:
        """Send the results to the host; does not wait for them."""
        self._host_results.copy_(self._results, non_blocking=True)
        if self._fetched is not None:
            self._fetched.record()

    def collect(self) -> list[list[int]]:
        """Wait for the results: the confirmed tokens of each staged request."""
        if self._fetched is not None:
            self._fetched.synchronize()
        num_rows, starts = self._starts[-1], self._starts[:-1]
        chosen = self._host_results[0, :num_rows].tolist()
        counts = self._host_results[1, : len(starts)].tolist()
        return [chosen[start : start + count] for start, count in zip(starts, counts, strict=True)]

    def _choose(self, logits: Tensor, num: int, out: Choice) -> None:
        rows = self._inputs.rows
        adjusted = None if self._adjusted_rows is None else self._adjusted_rows.apply(logits)
        if self._has_filters:
            others = None if adjusted is None else adjusted.logits
            filter_rows(logits, rows, self._inputs.filters, adjusted=others)
        gumbel_choice(logits, rows, num=num, adjusted=adjusted, workspace=self._workspace, out=out)

    def _adjust(
        self, requests: Sequence[VerifyRequest], indices: Sequence[int], words: Ids
    ) -> AdjustedRows:
        rows: list[int] = []
        tokens: list[Changes] = []
        for index in indices:
            start, end = self._starts[index : index + 2]
            tokens += changes_of_rows(requests[index], words[start : end - 1], self._vocab_size)
            rows += range(start, end)
        self._host.rows.numpy()[rows, columns.SOURCE] = np.arange(len(rows))
        return AdjustedRows(rows, tokens, self._vocab_size, self._device)


class _Inputs:
    """What the kernels read, packed so that one copy carries it. All int64, or bits of float64."""

    def __init__(
        self, max_rows: int, device: torch.device | str, *, is_pinned: bool = False
    ) -> None:
        num_words = max_rows * columns.NUM_FIELDS
        self.packed = torch.zeros(
            num_words + max_rows * (filter_columns.NUM_FILTERS + 2) + 1,
            dtype=torch.int64,
            device=device,
            pin_memory=is_pinned,
        )
        self.rows = self.packed[:num_words].view(max_rows, columns.NUM_FIELDS)
        self.drafts = self.packed[num_words : num_words + max_rows]
        num_words += max_rows
        self.filters = self.packed[num_words : num_words + max_rows * filter_columns.NUM_FILTERS]
        self.filters = self.filters.view(max_rows, filter_columns.NUM_FILTERS)
        self.row_starts = self.packed[-(max_rows + 1) :]

    def fill(
        self,
        seeds: Sequence[int],
        temperatures: Sequence[float],
        lengths: Sequence[int],
        drafts: Ids,
        starts: Sequence[int],
    ) -> None:
        """Write a round's numbers, per request, to its rows.

        Args:
            seeds: [R], unsigned.
            temperatures: [R].
            lengths: [R], tokens before the request's first row.
            drafts: [T], NO_DRAFT at a request's last row.
            starts: [R + 1], the first row of each request, and T.
        """
        num_rows = starts[-1]
        begins = np.array(starts, np.int64)
        counts = np.diff(begins)
        rows, row_starts = self.rows.numpy(), self.row_starts.numpy()
        words, floats = rows[:num_rows], rows.view(np.float64)[:num_rows]
        words[:, columns.SEED] = np.repeat(np.array(seeds, np.uint64).view(np.int64), counts)
        firsts = np.array(lengths, np.int64) - begins[:-1]
        words[:, columns.POSITION] = np.repeat(firsts, counts) + np.arange(num_rows)
        floats[:, columns.TEMPERATURE] = np.repeat(np.array(temperatures, np.float64), counts)
        floats[:, columns.MIN_VALUE] = columns.LOWEST
        floats[:, columns.MIN_LOGIT] = columns.LOWEST
        words[:, columns.SOURCE] = columns.OWN_LOGITS
        rows[num_rows:, columns.SOURCE] = columns.NO_ROW
        self.drafts.numpy()[:num_rows] = drafts
        row_starts[: len(begins)] = begins
        row_starts[len(begins) :] = num_rows

    def fill_filters(self, params: Mapping[int, SamplingParams], starts: Sequence[int]) -> None:
        """Write the filters of some requests, by index, to their rows; the others have none."""
        words, floats = self.filters.numpy(), self.filters.numpy().view(np.float64)
        words[:, filter_columns.TOP_K] = 0
        floats[:, filter_columns.TOP_P] = 1.0
        floats[:, filter_columns.LOG_MIN_P] = columns.LOWEST
        for index, one in params.items():
            rows = slice(starts[index], starts[index + 1])
            words[rows, filter_columns.TOP_K] = min(one.top_k, MAX_TOP_K)
            floats[rows, filter_columns.TOP_P] = one.top_p
            if one.min_p > 0.0:
                floats[rows, filter_columns.LOG_MIN_P] = math.log(one.min_p)


def _as_words(drafts: Sequence[int]) -> Ids:
    """Any integers at all in 64 bits; one that does not fit is no token id either."""
    try:
        return np.array(drafts, np.int64)
    except OverflowError:
        return np.array([i if 0 <= i < 2**63 else NO_DRAFT for i in drafts], np.int64)


def _top(token_ids: Sequence[float], scores: Sequence[float]) -> Top:
    ids = [int(token_id) for token_id in token_ids if token_id >= 0]
    return Top(ids, list(scores[: len(ids)])) if ids else NOTHING


def _new_event() -> torch.cuda.Event:
    return torch.cuda.Event()  # type: ignore[no-untyped-call]
