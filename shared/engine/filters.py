"""Which tokens may be chosen at all: top-k, then top-p, then min-p, as one threshold.

Equal logits are never told apart: a token is kept if its value reaches the threshold, so ties at
the edge all stay, and the kept set does not depend on any order.
"""

import math

import numpy as np
from numpy.typing import NDArray

from shared.protocol.sampling import SamplingParams

Values = NDArray[np.float64]


def has_filters(params: SamplingParams) -> bool:
    """Whether any of the three filters is on."""
    return params.top_k > 0 or params.top_p < 1.0 or params.min_p > 0.0


def keep_threshold(values: Values, params: SamplingParams) -> float:
    """The smallest value that is kept.

    top-k keeps the k best; top-p the smallest set of the best of those whose share of their mass
    reaches p, at least one; min-p what is at least min_p times as likely as the best.

    Args:
        values: [V], logits divided by the temperature, shifted so that the best is 0.
        params: top_k, top_p and min_p.
    """
    threshold = -math.inf
    if 0 < params.top_k < len(values):
        threshold = float(np.partition(values, -params.top_k)[-params.top_k])
    if params.top_p < 1.0:
        threshold = _top_p_threshold(values[values >= threshold], params.top_p)
    if params.min_p > 0.0:
        threshold = max(threshold, math.log(params.min_p))
    return threshold


def _top_p_threshold(kept: Values, top_p: float) -> float:
    best_first = np.sort(kept)[::-1]
    mass = np.cumsum(np.exp(best_first))
    index = int(np.searchsorted(mass, top_p * mass[-1]))
    return float(best_first[min(index, len(best_first) - 1)])
