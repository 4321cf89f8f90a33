"""The sampler's noise for some candidates of many rows at once, each with its seed and position.

Same words as `kernels.gumbel`, which draws for one seed and position a call: a drafter's step would
spend more time there than in its model. The cost here hardly depends on the number of candidates.
"""

import numpy as np
from numpy.typing import NDArray

from kernels.gumbel import noise_of_words
from kernels.philox import M0, M1, MASK, NUM_ROUNDS, W0, W1

Words = NDArray[np.uint64]  # 32-bit values in 64 bits: the products need the room

_MULTIPLIERS = np.array([[M0], [M1]], np.uint64)
_INCREMENTS = np.arange(NUM_ROUNDS, dtype=np.uint64)[:, None] * np.array([[W0, W1]], np.uint64)
_SHIFT, _MASK = np.uint64(32), np.uint64(MASK)


def round_keys(seed: int) -> Words:
    """[rounds, 2]: the key of each round. Computed once a session."""
    return (np.array([seed & MASK, seed >> 32], np.uint64) + _INCREMENTS) & _MASK


def gumbel(keys: Words, positions: NDArray[np.int64], token_ids: Words) -> NDArray[np.float64]:
    """The noise of each candidate.

    Args:
        keys: [rounds, 2, T], of each row's seed.
        positions: [T], absolute index of the token being chosen.
        token_ids: [M, T], the candidates of each row, below 2**32.

    Returns:
        [M, T] float64, equal to `kernels.gumbel.gumbel_reference` bit for bit.
    """
    # The counter is (c0, c1, c2, c3); `even` holds c0 and c2, `odd` c1 and c3, side by side.
    even = np.zeros((2, *token_ids.shape), np.uint64)
    odd = np.zeros_like(even)
    even[0] = token_ids
    odd[0] = positions.astype(np.uint64) & _MASK
    multipliers = _MULTIPLIERS[..., None]
    high = np.empty_like(even)
    for index in range(NUM_ROUNDS):
        np.multiply(even, multipliers, out=even)
        np.right_shift(even, _SHIFT, out=high)
        np.bitwise_and(even, _MASK, out=even)
        # c0 <- hi(M1 c2) ^ c1 ^ k0, c2 <- hi(M0 c0) ^ c3 ^ k1, c1 <- lo(M1 c2), c3 <- lo(M0 c0)
        odd ^= high[::-1]
        odd ^= keys[index][:, None]
        even, odd = odd, even[::-1]
    return noise_of_words(even[0])
