"""Guesses that are computed before the host has read them, on the GPU against their reference."""

import random

import pytest
import torch
from torch import Tensor

from kernels.gpu.take_guesses import (
    BLOCK,
    KNOWN,
    NUM_WARPS,
    take_guesses,
    take_guesses_reference,
)
from tests.kernels.gpu.compiled import compile_for_sm90

UNTOUCHED = -7


def words(numbers: list[int] | list[list[int]], device: str) -> Tensor:
    return torch.tensor(numbers, dtype=torch.int32, device=device)


@pytest.mark.parametrize("num", [1, 4])
@pytest.mark.parametrize("num_sequences", [1, 63, BLOCK + 3])
def test_guesses_go_where_their_sequences_go_on(num_sequences: int, num: int, device: str) -> None:
    """Of any row, to spans of any length; unusable ones give a token, known ones are left alone."""
    rng = random.Random(num_sequences)
    ranked = words([[rng.randrange(-1, 4_000) for _ in range(num)] for _ in range(70)], device)
    follows = words(
        [[rng.choice([KNOWN, rng.randrange(70)]), 0] for _ in range(num_sequences)], device
    )
    lengths = [1 if first != KNOWN else rng.randint(1, 5) for first, _ in follows.tolist()]
    starts = [sum(lengths[:index]) for index in range(num_sequences + 1)]
    ours, right = (words([UNTOUCHED] * (starts[-1] + 3), device) for _ in range(2))
    take_guesses(ranked, follows, words(starts, device), token_ids=ours)
    take_guesses_reference(ranked, follows, words(starts, device), token_ids=right)
    assert torch.equal(ours, right)
    assert ours.eq(UNTOUCHED).sum() == starts[-1] + 3 - follows[:, 0].ne(KNOWN).sum()


def test_the_production_configuration_fits_a_gpu() -> None:
    """Without a spill."""
    pointers = ("ranked_ptr", "follows_ptr", "query_starts_ptr", "token_ids_ptr")
    resources = compile_for_sm90(
        "kernels.gpu.take_guesses",
        "_take_guesses_kernel",
        dict.fromkeys(pointers, "*i32")
        | {"num_sequences": "i32", "num": "constexpr", "block": "constexpr"},
        {"num": 4, "block": BLOCK},
        num_warps=NUM_WARPS,
        num_stages=1,
    )
    assert resources.spill_bytes == 0
