"""What a round costs: seconds = a + s * sequences + b * rows, fitted to the rounds that were run.

Knows nothing of sessions. On every device we serve, a pass has a fixed price (reading the weights,
launching the operations), a price per sequence (attention, bookkeeping) and one per token row; the
last against the whole decides how many guesses pay.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

_MEMORY = 0.99  # weight of all earlier rounds when a new one is added: about the last 100 count
_FIT_EVERY = 8  # rounds; a fit costs some 20 us
_PROFILE_WEIGHT = 0.1  # how much the proportions of the profile count against some 100 rounds
_LOOSE_SHARE = 0.2  # of a round: a price below this may still move as if it were so high
_MIN_SHARE = 0.005  # of a round, of each price: none is free, or a plan would take all of it
_OUTLIER = 4.0  # a round that the system held up counts at most so many times the expected


class Measured(NamedTuple):
    """One round."""

    num_sequences: int
    num_rows: int
    seconds: float


class RoundCost:
    """The price of a round.

    Args:
        profile: rounds measured at start, at least one. What rounds that are all alike cannot
            tell, the proportions of the three prices, is taken from here.
    """

    def __init__(self, profile: Sequence[Measured]) -> None:
        self._profiled = _fit_profile(profile)
        self._prices = self._profiled
        # Decayed sums over rounds: of 1, sequences, rows; their squares and products; with seconds.
        self._sums = [0.0] * 10
        self._num_observed = 0

    @property
    def prices_s(self) -> tuple[float, float, float]:
        """Seconds: of any round, of each sequence in it, of each row."""
        fixed, per_sequence, per_row = self._prices
        return fixed, per_sequence, per_row

    @property
    def per_row_s(self) -> float:
        """Seconds that one more row of a sequence adds."""
        return self._prices[2]

    def predict(self, num_sequences: int, num_rows: int) -> float:
        """Expected seconds of a round."""
        fixed, per_sequence, per_row = self._prices
        return fixed + per_sequence * num_sequences + per_row * num_rows

    def observe(self, num_sequences: int, num_rows: int, seconds: float) -> None:
        """Learn from one round."""
        expected = self.predict(num_sequences, num_rows)
        seconds = min(max(seconds, expected / _OUTLIER), _OUTLIER * expected)
        n, r, t = num_sequences, num_rows, seconds
        new = (1.0, n, r, n * n, n * r, r * r, t, n * t, r * t, self._profiled_s(n, r))
        self._sums = [old * _MEMORY + one for old, one in zip(self._sums, new, strict=True)]
        self._num_observed += 1
        if self._num_observed % _FIT_EVERY == 0:
            self._fit()

    def _profiled_s(self, num_sequences: int, num_rows: int) -> float:
        fixed, per_sequence, per_row = self._profiled
        return fixed + per_sequence * num_sequences + per_row * num_rows

    def _fit(self) -> None:
        """Least squares, drawn to the profile's prices times what rounds cost now against then."""
        one, n, r, nn, nr, rr, t, nt, rt, profiled_s = self._sums
        prior = np.array(self._profiled) * (t / profiled_s)
        mean_s = t / one
        squares = np.array(((one, n, r), (n, nn, nr), (r, nr, rr)))
        mean_features = squares[0] / one
        # Each price may move in proportion to itself.
        width = np.maximum(prior, _LOOSE_SHARE * mean_s / mean_features)
        pull = _PROFILE_WEIGHT * (mean_s / width) ** 2
        solved = np.linalg.solve(squares + np.diag(pull), np.array((t, nt, rt)) + pull * prior)
        prices = np.maximum(solved, _MIN_SHARE * mean_s / mean_features)
        self._prices = (prices * (mean_s / float(mean_features @ prices))).tolist()


def least_s(profile: Sequence[Measured], num_sequences: int, num_rows: int) -> float:
    """Seconds that a round takes at least: what the dearest profiled one within it took, or 0.

    Not a price of the fit: fitted to rounds of all sizes, it may be far above some.
    """
    return max(
        (
            one.seconds
            for one in profile
            if one.num_sequences <= num_sequences and one.num_rows <= num_rows
        ),
        default=0.0,
    )


def _fit_profile(profile: Sequence[Measured]) -> list[float]:
    """The prices that fit best in proportion, none below a small share of the cheapest round."""
    features = np.array([(1.0, measured.num_sequences, measured.num_rows) for measured in profile])
    seconds = np.array([measured.seconds for measured in profile])
    solved, *_ = np.linalg.lstsq(features / seconds[:, None], np.ones(len(seconds)))
    prices: list[float] = np.maximum(solved, _MIN_SHARE * seconds.min()).tolist()
    return prices
