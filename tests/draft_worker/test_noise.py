"""draft_worker/noise.py: the shared noise for many rows at once."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from draft_worker.noise import gumbel, round_keys
from kernels.gumbel import gumbel_reference

SEEDS = st.lists(st.integers(0, (1 << 64) - 1), min_size=1, max_size=4)


@given(SEEDS, st.integers(0, 1 << 20), st.integers(1, 9))
def test_every_row_has_the_noise_of_its_own_seed_and_position(
    seeds: list[int], position: int, num: int
) -> None:
    """Bit for bit the reference, row by row."""
    ids = np.arange(num * len(seeds), dtype=np.uint64).reshape(num, len(seeds)) * np.uint64(977)
    positions = np.arange(position, position + len(seeds))
    keys = np.stack([round_keys(seed) for seed in seeds], axis=-1)
    noise = gumbel(keys, positions, ids)
    for index, seed in enumerate(seeds):
        expected = gumbel_reference(seed, position + index, ids[:, index])
        assert (noise[:, index] == expected).all()
