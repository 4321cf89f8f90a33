"""Keyed Gumbel noise: G(seed, position, token id) = -log(-log(u)), the same everywhere.

u = (x + 0.5) / 2**32 with x the first word of Philox4x32-10 of the counter (token id, position, 0,
0) under the key `seed`; u is exact in float64, and so the noise is between -3.14 and 22.88.

This is the definition; the sampler's own loop is `kernels.gumbel_top`.

Source: Gumbel-max; one noise for target and drafter after Daliri et al. 2024, arXiv:2408.07978.
"""

import numpy as np
from numpy.typing import NDArray

from kernels.philox import MASK, Words, philox4x32_reference

MAX_NOISE = 22.88  # -log(-log(1 - 2**-33)) = 22.874, rounded up


def gumbel_reference(seed: int, position: int, token_ids: Words) -> NDArray[np.float64]:
    """The noise of each token id at one position, by definition.

    Args:
        seed: unsigned, 64 bits.
        position: absolute index of the token being chosen, prompt included.
        token_ids: [N], below 2**32.

    Returns:
        [N] float64. A token's noise does not depend on the others.
    """
    counter = np.zeros((4, len(token_ids)), np.uint64)
    counter[0] = token_ids
    counter[1] = position & MASK
    return noise_of_words(philox4x32_reference(counter, seed)[0])


def noise_of_words(words: Words) -> NDArray[np.float64]:
    """-log(-log(u)) for random 32-bit words."""
    noise = words.astype(np.float64)
    noise += 0.5
    noise *= 2.0**-32
    for _ in range(2):
        np.log(noise, out=noise)
        np.negative(noise, out=noise)
    return noise
