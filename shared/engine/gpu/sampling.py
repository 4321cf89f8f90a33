"""The sampler on a GPU: the tokens of shared/engine/sampling.py, chosen where the logits are.

A round is staged (parameters of all rows, one copy to the device), launched (kernels alone, which
read everything from the device, so that a graph can hold them), fetched (one copy back) and
collected (one wait). One round at a time: where rounds overlap, two samplers take turns.

Rows with penalties, bias, ids not allowed yet or filters are left to the CPU, request by request.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kernels.gpu import gumbel_choice as columns
from kernels.gpu.accept_drafts import accept_drafts
from kernels.gpu.gumbel_choice import Choice, gumbel_choice, new_choice, new_workspace
from kernels.gumbel_top import Top
from shared.engine import sampling
from shared.engine.adjustments import changes_logits
from shared.engine.filters import has_filters
from shared.engine.sampling import NOTHING, Row, VerifyRequest

Ids = NDArray[np.int64]
NO_DRAFT = -1


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
        self._left: dict[int, VerifyRequest] = {}  # by index: those that the CPU verifies
        self._logits: Tensor | None = None

    def verify(self, logits: Tensor, requests: Sequence[VerifyRequest]) -> list[list[int]]:
        """See `shared.engine.sampling.verify`; logits [T, V] bf16 or float32, on the device."""
        assert len(logits) == sum(len(request.draft_token_ids) + 1 for request in requests)
        self.stage(requests)
        self.launch(logits)
        self.fetch()
        return self.collect()

    def rank(self, logits: Tensor, rows: Sequence[Row], num: int) -> list[Top]:
        """See `shared.engine.sampling.rank`; however far behind, no token is left out."""
        requests = [VerifyRequest(row.params, row.token_ids, row.prompt_len, ()) for row in rows]
        self.stage(requests)
        choice = new_choice(len(rows), num, self._device)
        gumbel_choice(logits, self._inputs.rows, num=num, workspace=self._workspace, out=choice)
        packed = torch.cat([choice.scores, choice.token_ids.double()], dim=1)
        tops = [_top(numbers[num:], numbers[:num]) for numbers in packed.tolist()]
        for index in self._left:
            one = logits[index : index + 1].float()
            (tops[index],) = sampling.rank(one, [rows[index]], num)
        return tops

    def stage(self, requests: Sequence[VerifyRequest]) -> None:
        """Send what the kernels need to know to the device; does not wait for it."""
        if self._staged is not None:
            self._staged.synchronize()  # the last round's copy still read the buffer
        seeds, temperatures, lengths = [], [], []
        drafts: list[int] = []
        starts = [0]
        self._left = {}
        for index, request in enumerate(requests):
            params = request.params
            num_tokens = len(request.token_ids)
            seeds.append(params.seed)
            temperatures.append(params.temperature)
            lengths.append(num_tokens)
            drafts += request.draft_token_ids
            drafts.append(NO_DRAFT)
            starts.append(len(drafts))
            if (params.temperature > 0 and has_filters(params)) or changes_logits(
                params, num_tokens - request.prompt_len
            ):
                self._left[index] = request
        assert len(drafts) <= self._max_rows
        self._starts = starts
        self._host.fill(seeds, temperatures, lengths, _as_words(drafts), starts)
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
        gumbel_choice(logits, self._inputs.rows, workspace=self._workspace, out=self._choice)
        accept_drafts(
            self._results[0],
            self._inputs.drafts,
            self._inputs.row_starts[: num_rows + 1],
            out=self._results[1, :num_rows],
        )
        self._logits = logits

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
        confirmed = [
            chosen[start : start + count] for start, count in zip(starts, counts, strict=True)
        ]
        for index, request in self._left.items():
            assert self._logits is not None
            rows = self._logits[self._starts[index] : self._starts[index + 1]]
            (confirmed[index],) = sampling.verify(rows.float(), [request])
        return confirmed


class _Inputs:
    """What the kernels read, packed so that one copy carries it. All int64, or bits of float64."""

    def __init__(
        self, max_rows: int, device: torch.device | str, *, is_pinned: bool = False
    ) -> None:
        num_words = max_rows * columns.NUM_FIELDS
        self.packed = torch.zeros(
            num_words + max_rows + max_rows + 1,
            dtype=torch.int64,
            device=device,
            pin_memory=is_pinned,
        )
        self.rows = self.packed[:num_words].view(max_rows, columns.NUM_FIELDS)
        self.drafts = self.packed[num_words : num_words + max_rows]
        self.row_starts = self.packed[num_words + max_rows :]

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
