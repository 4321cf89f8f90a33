"""Which tokens may be chosen at all: top-k, then top-p, then min-p, as one threshold.

Equal logits are never told apart: a token is kept if its value reaches the threshold, so ties at
the edge all stay, and the kept set does not depend on any order.
"""

import math
import sys

import numpy as np
from numpy.typing import NDArray

from shared.protocol.sampling import SamplingParams

Values = NDArray[np.float64]

LOWEST = -sys.float_info.max  # keeps everything but -inf, which is never chosen
# Sorting few tokens instead of all: the edge is looked for above -4, then above -12, then anywhere.
# Two thirds of a story's top-p 0.95 sets end above the first, nearly all above the second.
_LEVELS = (-4.0, -12.0, LOWEST)


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
    threshold = LOWEST
    if 0 < params.top_k < len(values):
        threshold = _top_k_threshold(values, params.top_k)
    if params.top_p < 1.0:
        kept = values if threshold == LOWEST else values.compress(values >= threshold)
        threshold = _top_p_threshold(kept, params.top_p)
    if params.min_p > 0.0:
        threshold = max(threshold, math.log(params.min_p))
    return threshold


def _top_k_threshold(values: Values, top_k: int) -> float:
    for level in _LEVELS:
        best = values.compress(values >= level)
        if len(best) >= top_k:
            return float(np.partition(best, -top_k)[-top_k])
    return LOWEST


def _top_p_threshold(values: Values, top_p: float) -> float:
    needed = top_p * np.exp(values).sum()
    for level in _LEVELS:
        best_first = np.sort(values.compress(values >= level))[::-1]
        mass = np.cumsum(np.exp(best_first))
        if mass[-1] >= needed:
            break
    # Where rounding keeps even the whole mass below what is needed, everything is kept.
    index = min(int(np.searchsorted(mass, needed)), len(mass) - 1)
    return float(best_first[index])
