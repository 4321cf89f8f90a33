"""How likely a guess is to be right, given its margin: learned from verdicts.

The margin is the distance between the two best scores (logit plus noise) of the drafter's own
ranking. Only counts are kept, never tokens.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

_BUCKET_WIDTH = 0.25
_NUM_BUCKETS = 24  # margins from 6 up are alike
_PRIOR_WEIGHT = 16.0  # verdicts that the starting figures are worth
_MEMORY = 4_096.0  # verdicts, of a bucket or of all, after which the older half counts half
# Where the drafter is wrong, the truth is its rank 2, 3, 4 so often (trial pair, T = 0.7).
_PRIOR_SHARES = (0.55, 0.19, 0.08)


class Guess(NamedTuple):
    """One guessed token with the runners-up."""

    token_ids: Sequence[int]  # best first; the guess itself is the first
    margin: float  # score of the first minus score of the second, >= 0
    odds: float  # estimated probability that the first is right, given all before it are


class Confidence:
    """Margin to probability, for one kind of session."""

    def __init__(self) -> None:
        self._right = [0.0] * _NUM_BUCKETS
        self._total = [_PRIOR_WEIGHT] * _NUM_BUCKETS
        for bucket in range(_NUM_BUCKETS):
            margin = (bucket + 0.5) * _BUCKET_WIDTH
            self._right[bucket] = _PRIOR_WEIGHT * (1.0 - 0.6 * math.exp(-margin / 1.5))
        self._all_right, self._all = sum(self._right), sum(self._total)
        self._misses = _PRIOR_WEIGHT
        self._rank_hits = [_PRIOR_WEIGHT * share for share in _PRIOR_SHARES]
        self._shares: list[float] = []  # of the last who asked, until the next miss

    def odds(self, margin: float) -> float:
        """Estimated probability that a guess with this margin is right."""
        bucket = _bucket(margin)
        return self._right[bucket] / self._total[bucket]

    @property
    def mean(self) -> float:
        """The same of a guess whose margin is not known yet."""
        return self._all_right / self._all

    def shares(self, num: int) -> list[float]:
        """Given a wrong guess, how likely each of its runners-up is right, the next one first.

        Of `num` at most; what comes later is never right.
        """
        if len(self._shares) != num:
            self._shares = [hits / self._misses for hits in self._rank_hits[:num]]
        return self._shares

    def observe(self, guess: Guess, token_id: int) -> None:
        """Learn what a position that was guessed turned out to be."""
        bucket = _bucket(guess.margin)
        is_right = guess.token_ids[0] == token_id
        self._total[bucket] += 1.0
        if self._total[bucket] > _MEMORY:
            self._total[bucket] *= 0.5
            self._right[bucket] *= 0.5
        self._right[bucket] += is_right
        self._all += 1.0
        self._all_right += is_right
        if self._all > _MEMORY:
            self._all *= 0.5
            self._all_right *= 0.5
        if is_right:
            return
        self._misses += 1.0
        self._shares = []
        for rank, other in enumerate(guess.token_ids[1:]):
            if other == token_id and rank < len(self._rank_hits):
                self._rank_hits[rank] += 1.0


def _bucket(margin: float) -> int:
    # A margin may be infinite (one token left after filtering) or, from broken weights, NaN.
    if not margin < _NUM_BUCKETS * _BUCKET_WIDTH:
        return _NUM_BUCKETS - 1
    return max(0, int(margin / _BUCKET_WIDTH))
