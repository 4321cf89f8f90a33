"""Rows that go on where another round ends, on the GPU against their reference."""

import copy
import random

import pytest
import torch
from torch import Tensor

from kernels.gpu.attention_work import AttentionBatch
from kernels.gpu.follow_rows import (
    NUM_COLUMNS,
    NUM_WARPS,
    follow_rows,
    follow_rows_reference,
)
from tests.kernels.gpu.compiled import compile_for_sm90

BLOCK_SIZE, TABLE_LEN = 16, 7
UNTOUCHED = -7


def words(numbers: list[int] | list[list[int]], device: str) -> Tensor:
    return torch.tensor(numbers, dtype=torch.int32, device=device)


class Staged:
    """A round of `num_rows` sequences that follow others with up to 5 guesses, and its outcome."""

    def __init__(self, num_rows: int, device: str, *, extra: int = 3) -> None:
        rng = random.Random(num_rows)
        drafts = [rng.randrange(6) for _ in range(num_rows)]
        firsts = [sum(drafts[:row]) + row for row in range(num_rows)]
        order = rng.sample(range(num_rows), num_rows)  # of the sequences in this round
        size = sum(drafts) + num_rows
        counts = [0] * size
        for first, num_drafts in zip(firsts, drafts, strict=True):
            counts[first] = rng.randint(0, num_drafts + 1)
        self.chosen = words([rng.randrange(-1, 4_000) for _ in range(size)], device)
        self.num_confirmed = words(counts, device)
        self.follows = words([[firsts[row], drafts[row]] for row in order], device)
        most = TABLE_LEN * BLOCK_SIZE - 1
        starts = [rng.randint(drafts[row], most) for row in order]
        padding = [UNTOUCHED] * extra
        self.token_ids, self.slots = (
            words([UNTOUCHED] * (num_rows + extra), device) for _ in range(2)
        )
        table = [rng.sample(range(1_000), TABLE_LEN) for _ in range(num_rows + extra)]
        self.batch = AttentionBatch(
            query_starts=words(list(range(num_rows + extra + 1)), device),
            context_lens=words([*(start + 1 for start in starts), *padding], device),
            block_tables=words(table, device),
            positions=words([*starts, *padding], device),
        )

    def written(self) -> list[Tensor]:
        batch = self.batch
        return [self.token_ids, self.slots, batch.positions, batch.context_lens]


@pytest.mark.parametrize("num_rows", [1, 2, 63])
def test_rows_go_on_where_their_sequences_end(num_rows: int, device: str) -> None:
    """However much was confirmed, in any order; rows of nobody stay as they are."""
    staged = Staged(num_rows, device)
    expected = copy.deepcopy(staged)
    for run, own in ((follow_rows, staged), (follow_rows_reference, expected)):
        run(
            own.chosen, own.num_confirmed, own.follows, own.batch,
            token_ids=own.token_ids, slots=own.slots, block_size=BLOCK_SIZE,
        )  # fmt: skip
    for ours, right in zip(staged.written(), expected.written(), strict=True):
        assert torch.equal(ours, right)
        assert ours[num_rows:].eq(UNTOUCHED).all()


def test_the_production_configuration_fits_a_gpu() -> None:
    """Without a spill."""
    pointers = (
        "chosen_ptr", "num_confirmed_ptr", "follows_ptr", "token_ids_ptr", "positions_ptr",
        "slots_ptr", "context_lens_ptr", "tables_ptr",
    )  # fmt: skip
    resources = compile_for_sm90(
        "kernels.gpu.follow_rows",
        "_follow_rows_kernel",
        dict.fromkeys(pointers, "*i32") | dict.fromkeys(("table_len", "block_size"), "constexpr"),
        {"table_len": 64, "block_size": 64},
        num_warps=NUM_WARPS,
        num_stages=1,
    )
    assert resources.spill_bytes == 0
    assert NUM_COLUMNS == 2
