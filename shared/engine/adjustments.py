"""What a request changes about the logits: penalties, bias, and ids that may not come yet.

In this order, in float64: repetition penalty over prompt and output (a positive logit is divided by
it, another multiplied: CTRL, Keskar et al. 2019, and Hugging Face), presence and frequency penalty
over the output (OpenAI), logit bias, and -inf for stop ids before `min_tokens`.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from shared.protocol.sampling import SamplingParams

Values = NDArray[np.float64]
Ids = NDArray[np.int64]


class Adjustments:
    """The adjustments of one sequence, which grows by `accept`."""

    def __init__(
        self, params: SamplingParams, token_ids: Sequence[int], prompt_len: int, vocab_size: int
    ) -> None:
        self._params = params
        self._vocab_size = vocab_size
        self._num_output = len(token_ids) - prompt_len
        repeats = params.repetition_penalty != 1.0
        self._seen = set(token_ids) if repeats else set[int]()
        self._counts = Counter(token_ids[prompt_len:]) if _counts_output(params) else Counter()
        self._bias = {i: bias for i, bias in params.logit_bias if 0 <= i < vocab_size}
        self._stop_ids = [i for i in params.stop_token_ids if 0 <= i < vocab_size]

    def accept(self, token_id: int) -> None:
        """The output grew by one token."""
        self._num_output += 1
        if self._params.repetition_penalty != 1.0:
            self._seen.add(token_id)
        if _counts_output(self._params):
            self._counts[token_id] += 1

    def apply(self, logits: NDArray[np.float32]) -> Values:
        """A changed float64 copy of one row, [V]."""
        values = logits.astype(np.float64)
        if self._seen:
            ids = self._known(self._seen)
            penalty = self._params.repetition_penalty
            values[ids] = np.where(values[ids] > 0, values[ids] / penalty, values[ids] * penalty)
        if self._counts:
            ids = self._known(self._counts)
            counts = np.array([self._counts[i] for i in ids.tolist()], np.float64)
            values[ids] -= self._params.presence_penalty + self._params.frequency_penalty * counts
        for token_id, bias in self._bias.items():
            values[token_id] += bias
        if self._num_output < self._params.min_tokens:
            values[self._stop_ids] = -np.inf
        return values

    def _known(self, token_ids: set[int] | Counter[int]) -> Ids:
        ids = np.fromiter(token_ids, np.int64, len(token_ids))
        return ids[(ids >= 0) & (ids < self._vocab_size)]


def changes_logits(params: SamplingParams, num_output: int) -> bool:
    """Whether the next choice needs Adjustments at all."""
    return (
        params.has_penalties
        or bool(params.logit_bias)
        or (num_output < params.min_tokens and bool(params.stop_token_ids))
    )


def _counts_output(params: SamplingParams) -> bool:
    return params.presence_penalty != 0.0 or params.frequency_penalty != 0.0
