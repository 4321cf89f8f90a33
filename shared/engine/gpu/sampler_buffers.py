"""What the sampler's kernels read and write: one copy to the device and one back.

Both sides stay where they are, so that a captured graph finds the next round where it found the
last. Rows beyond a round's are nobody's: all zeros.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kernels.gpu import filter_rows as filter_columns
from kernels.gpu import gumbel_choice as columns
from kernels.gpu.gumbel_choice import Choice
from shared.engine.adjustments import changes_logits
from shared.engine.filters import has_filters
from shared.engine.sampling import Row, VerifyRequest
from shared.protocol.sampling import SamplingParams

Ids = NDArray[np.int64]
NO_DRAFT = -1
MAX_TOP_K = 2**31  # more than any vocabulary: off
WORD_BYTES, INT32_BYTES = 8, 4
ALIGNMENT_BYTES = 16  # a pointer that is aligned less is another kernel to Triton
# A row that is somebody's: no filter, no draft, and not the first of its request.
_UNFILTERED_ROW = np.zeros(columns.NUM_FIELDS, np.int64)
_UNFILTERED_ROW[[columns.IS_USED, columns.DRAFT]] = 1, NO_DRAFT
_UNFILTERED_ROW.view(np.float64)[[columns.MIN_VALUE, columns.MIN_LOGIT]] = columns.LOWEST


class SamplerInputs:
    """The rows of a round, `columns.NUM_FIELDS` words each, and their filters.

    What depends on parameters alone is written again only if these, or the numbers of drafts, are
    not those of the round before: sessions stay together for many rounds.

    Args:
        rows: [max_rows, NUM_FIELDS] int64 zeros on the device, which several of these may share.
        filters: [max_rows, NUM_FILTERS] int64, the same.
    """

    def __init__(self, rows: Tensor, filters: Tensor) -> None:
        self.rows, self.filters = rows, filters
        self._host_rows, self._host_filters = (
            torch.zeros(own.shape, dtype=torch.int64, pin_memory=own.is_cuda)
            for own in (rows, filters)
        )
        self._words: Ids = self._host_rows.numpy()
        self._floats = self._words.view(np.float64)
        self.num_rows = 0
        self.starts: list[int] = [0]  # the first row of each request, and the number of rows
        self.first_rows: Ids = np.zeros(0, np.int64)  # the same without the last
        self.has_filters = False
        self.adjusted: list[int] = []  # requests whose logits are to be changed, by index
        self._params: list[SamplingParams] | None = None
        self._counts: list[int] = []
        self._repeats: Ids = np.zeros(0, np.int64)  # the same
        self._offsets: Ids = np.zeros(0, np.int64)  # of each row from its request's first
        self._adjustable: list[int] = []  # requests that may be among the adjusted at some time

    @staticmethod
    def allocate(max_rows: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """What is on the device."""
        shapes = (max_rows, columns.NUM_FIELDS), (max_rows, filter_columns.NUM_FILTERS)
        rows, filters = (torch.zeros(shape, dtype=torch.int64, device=device) for shape in shapes)
        return rows, filters

    @staticmethod
    def num_bytes(max_rows: int) -> int:
        """On the device."""
        return max_rows * (columns.NUM_FIELDS + filter_columns.NUM_FILTERS) * WORD_BYTES

    def stage(
        self,
        requests: Sequence[Row | VerifyRequest],
        counts: list[int],
        drafts: Sequence[int] | None = None,
        unread: Sequence[int] = (),
    ) -> Ids | None:
        """Write a round on the host's side. The last `send` must be over.

        Args:
            requests: at least one.
            counts: rows of each; kept.
            drafts: of all rows, NO_DRAFT at each request's last one; None where counts are all 1.
            unread: tokens of each request that come behind those it has; nothing for none.

        Returns:
            The drafts as they are compared.
        """
        params = [request.params for request in requests]
        if params != self._params or counts != self._counts:
            self._lay_out(params, counts)
        num_rows = self.num_rows
        positions = np.array([len(request.token_ids) for request in requests], np.int64)
        if unread:
            positions += unread
        words = None
        if drafts is None:
            self._words[:num_rows, columns.POSITION] = positions
        else:
            words = _as_words(drafts)
            self._words[:num_rows, columns.POSITION] = (
                positions.repeat(self._repeats) + self._offsets
            )
            self._words[:num_rows, columns.DRAFT] = words
        self.adjusted = [
            index
            for index in self._adjustable
            if changes_logits(
                params[index], len(requests[index].token_ids) - requests[index].prompt_len
            )
        ]
        return words

    def leave_out(self, rows: Sequence[int]) -> None:
        """These rows of the staged round are chosen elsewhere."""
        self._words[rows, columns.IS_USED] = 0
        self._params = None  # the next round is laid out anew

    def send(self, num_rows: int, *, has_filters: bool) -> None:
        """Copy so many rows to the device, in the order of the current stream."""
        self.rows[:num_rows].copy_(self._host_rows[:num_rows], non_blocking=True)
        if has_filters:
            self.filters[:num_rows].copy_(self._host_filters[:num_rows], non_blocking=True)

    def place(self, positions: Tensor) -> None:
        """Rows that were sent are of tokens after these positions, [num_rows] on the device."""
        torch.add(positions, 1, out=self.rows[: len(positions), columns.POSITION])

    def _lay_out(self, params: list[SamplingParams], counts: list[int]) -> None:
        """Write all but positions and drafts."""
        num_requests = len(counts)
        repeats = np.array(counts)
        ends = repeats.cumsum()
        num_rows = int(ends[-1])
        assert num_rows <= len(self._words)
        seeds = np.fromiter([one.seed for one in params], np.uint64, num_requests).view(np.int64)
        temperatures = np.fromiter([one.temperature for one in params], np.float64, num_requests)
        self._params = None  # should a request be refused on the way, the next round is laid out
        self.first_rows = ends - repeats
        self.starts = [*self.first_rows.tolist(), num_rows]
        self._words[num_rows : self.num_rows] = 0  # what the round before had and this one has not
        self._words[:num_rows] = _UNFILTERED_ROW
        self.num_rows = num_rows
        if num_rows > num_requests:
            seeds, temperatures = seeds.repeat(repeats), temperatures.repeat(repeats)
            self._offsets = np.arange(num_rows) - self.first_rows.repeat(repeats)
        self._words[:num_rows, columns.SEED] = seeds
        self._floats[:num_rows, columns.TEMPERATURE] = temperatures
        self._words[self.first_rows, columns.NUM_ROWS] = repeats
        self._adjustable = [i for i, one in enumerate(params) if changes_logits(one, 0)]
        filtered = [i for i, one in enumerate(params) if has_filters(one) and one.temperature > 0]
        self.has_filters = bool(filtered)
        if filtered:
            self._lay_out_filters({index: params[index] for index in filtered})
        self._params, self._counts, self._repeats = params, counts, repeats

    def _lay_out_filters(self, params: dict[int, SamplingParams]) -> None:
        """Write the filters of some requests, by index, to their rows; the others have none."""
        words = self._host_filters[: self.num_rows].numpy()
        floats = words.view(np.float64)
        words[:, filter_columns.TOP_K] = 0
        floats[:, filter_columns.TOP_P] = 1.0
        floats[:, filter_columns.LOG_MIN_P] = columns.LOWEST
        for index, one in params.items():
            rows = slice(self.starts[index], self.starts[index + 1])
            words[rows, filter_columns.TOP_K] = min(one.top_k, MAX_TOP_K)
            floats[rows, filter_columns.TOP_P] = one.top_p
            if one.min_p > 0.0:
                floats[rows, filter_columns.LOG_MIN_P] = math.log(one.min_p)


class SamplerResults:
    """What a launch over `num_rows` rows writes: the best `num` of each, and what is confirmed.

    Args:
        device_bytes: [`num_bytes(num_rows, num)` or more] uint8, shared by all sizes.
        host_bytes: the same on the host.
    """

    def __init__(self, device_bytes: Tensor, host_bytes: Tensor, num_rows: int, num: int) -> None:
        ends = _ends(num_rows, num)
        self._device, self._host = device_bytes[: ends[-1]], host_bytes[: ends[-1]]
        self.choice = Choice(
            token_ids=_part(self._device, ends[0], torch.int32, (num_rows, num)),
            scores=_part(self._device, 0, torch.float64, (num_rows, num)),
        )
        self.num_confirmed = _part(self._device, ends[1], torch.int32, (num_rows,))
        self.host_scores = _part(self._host, 0, torch.float64, (num_rows, num)).numpy()
        self.host_token_ids = _part(self._host, ends[0], torch.int32, (num_rows, num)).numpy()
        self.host_num_confirmed = _part(self._host, ends[1], torch.int32, (num_rows,)).numpy()

    @staticmethod
    def num_bytes(num_rows: int, num: int) -> int:
        """On each side."""
        return _ends(num_rows, num)[-1]

    def fetch(self) -> None:
        """Copy all of it to the host, in the order of the current stream."""
        self._host.copy_(self._device, non_blocking=True)


def _ends(num_rows: int, num: int) -> tuple[int, int, int]:
    """Bytes up to the end of scores, token ids, and numbers of what is confirmed."""
    scores = _aligned(num_rows * num * WORD_BYTES)
    token_ids = scores + _aligned(num_rows * num * INT32_BYTES)
    return scores, token_ids, token_ids + _aligned(num_rows * INT32_BYTES)


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


def _part(buffer: Tensor, start: int, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    num_bytes = math.prod(shape) * dtype.itemsize
    return buffer[start : start + num_bytes].view(dtype).view(shape)


def _as_words(drafts: Sequence[int]) -> Ids:
    """Any integers at all in 64 bits; one that does not fit is no token id either."""
    try:
        return np.array(drafts, np.int64)
    except OverflowError:
        return np.array([i if 0 <= i < 2**63 else NO_DRAFT for i in drafts], np.int64)
