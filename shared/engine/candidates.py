"""From one row of logits to the tokens that may be chosen, and what decides between them.

Noise is drawn only for tokens that can win, and for the short rows of a batch together: a call
costs more than the noise of a hundred tokens. Neither changes a score.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kernels.gumbel import MAX_NOISE, gumbel
from kernels.philox import MASK, round_keys
from shared.engine.filters import LOWEST, has_filters, keep_threshold
from shared.protocol.sampling import SamplingParams

Logits = NDArray[np.float32]
Values = NDArray[np.float64]
Ids = NDArray[np.int64]

# The best score is at least this but once in a thousand times; then the rest is drawn for too.
_LIKELY_SCORE = -2.0
_SHORT = 256  # candidates; drawing for these alone costs mostly calls


@dataclass(slots=True)
class Candidates:
    """The tokens of one row that may be chosen; with `add_noise` their scores are final."""

    token_ids: Ids  # ascending
    scores: Values
    params: SamplingParams
    position: int
    pruned: Values | None = None  # the whole row, where tokens far behind were left out

    @property
    def needs_noise(self) -> bool:
        """Whether noise can decide anything."""
        is_open = len(self.token_ids) > 1 or self.pruned is not None
        return is_open and self.params.temperature > 0

    @property
    def best(self) -> int:
        """The token with the highest score, the lowest id on ties."""
        return int(self.token_ids[self.scores.argmax()])

    def rank(self, num: int) -> tuple[list[int], list[float]]:
        """The best `num` tokens and their scores, best first."""
        few = np.flatnonzero(self.scores >= self.score_of(num))
        order = few[np.lexsort((self.token_ids[few], -self.scores[few]))[:num]]
        return self.token_ids[order].tolist(), self.scores[order].tolist()

    def score_of(self, num: int) -> float:
        """The score of the `num`-th best, -inf if there are fewer."""
        if num == 1:
            return float(self.scores.max())
        is_enough = num <= len(self.scores)
        return float(np.partition(self.scores, -num)[-num]) if is_enough else -np.inf


def find_candidates(
    values: Logits | Values, params: SamplingParams, position: int
) -> Candidates | None:
    """Temperature and filters.

    Args:
        values: [V], logits after penalties and bias.
        params: of the row's sequence.
        position: absolute index of the token being chosen, prompt included.

    Returns:
        None if the row is unusable: NaN or +inf in it, or nothing but -inf.
    """
    best = np.float64(values.max())
    if not np.isfinite(best):
        return None
    if params.temperature == 0:
        return Candidates(_all_ids(len(values)), values - best, params, position)
    scaled = values - best
    if params.temperature != 1.0:
        with np.errstate(over="ignore"):  # to -inf, at temperatures near the smallest float
            scaled /= params.temperature
    if has_filters(params):
        token_ids = np.flatnonzero(scaled >= keep_threshold(scaled, params))
        return Candidates(token_ids, scaled[token_ids], params, position)
    can_win = scaled >= _LIKELY_SCORE - MAX_NOISE
    if can_win.all():
        return Candidates(_all_ids(len(scaled)), scaled, params, position)
    token_ids = np.flatnonzero(can_win)
    return Candidates(token_ids, scaled[token_ids], params, position, pruned=scaled)


def add_noise(batch: Sequence[Candidates], num: int) -> None:
    """Make scores final, so that the best `num` tokens of each row are right."""
    waiting = [row for row in batch if row.needs_noise]
    short = [row for row in waiting if len(row.token_ids) <= _SHORT]
    if short:
        _draw_together(short)
    for row in waiting:
        if len(row.token_ids) > _SHORT:
            row.scores += _draw(row)
    for row in batch:
        # Noise has an upper bound, so what was left out scores less than this.
        if row.pruned is not None and row.score_of(num) < _LIKELY_SCORE:
            row.token_ids = np.flatnonzero(row.pruned >= LOWEST)
            row.scores = row.pruned[row.token_ids]
            row.scores += _draw(row)


@functools.lru_cache(maxsize=4)  # one vocabulary a process
def _all_ids(vocab_size: int) -> Ids:
    token_ids = np.arange(vocab_size)
    token_ids.flags.writeable = False
    return token_ids


def _draw(row: Candidates) -> Values:
    keys = round_keys(row.params.seed)[:, :, None]
    positions = np.array([row.position & MASK], np.uint64)
    return gumbel(keys, positions, row.token_ids.view(np.uint64))


def _draw_together(rows: Sequence[Candidates]) -> None:
    counts = [len(row.token_ids) for row in rows]
    keys = np.stack([round_keys(row.params.seed) for row in rows], axis=-1)
    positions = np.array([row.position & MASK for row in rows], np.uint64)
    token_ids = np.concatenate([row.token_ids for row in rows]).view(np.uint64)
    noise = gumbel(np.repeat(keys, counts, axis=-1), np.repeat(positions, counts), token_ids)
    end = 0
    for row, count in zip(rows, counts, strict=True):
        row.scores += noise[end : end + count]
        end += count
