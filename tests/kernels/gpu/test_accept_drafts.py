import pytest
import torch
from torch import Tensor

from kernels.gpu import gumbel_choice as columns
from kernels.gpu.accept_drafts import accept_drafts, accept_drafts_reference
from tests.kernels.gpu.compiled import compile_for_sm90


def rows_of(drafts: list[int], num_rows: list[int], device: str) -> Tensor:
    """Drafts of rows, and the rows of each request: one after another."""
    rows = torch.full((len(drafts), columns.NUM_FIELDS), 2**40)
    rows[:, columns.DRAFT] = torch.tensor(drafts)
    rows[:, columns.NUM_ROWS] = 0
    starts = torch.tensor([0, *num_rows]).cumsum(0)[:-1]
    rows[starts, columns.NUM_ROWS] = torch.tensor(num_rows)
    return rows.to(device)


CASES = {
    "all right": ([4, 5, 6], [4, 5, -1], [3], [3, 0, 0]),
    "wrong at once": ([4, 5, 6], [9, 5, -1], [3], [1, 0, 0]),
    "wrong later": ([4, 5, 6], [4, 9, -1], [3], [2, 0, 0]),
    "no drafts": ([4, 5], [-1, -1], [1, 1], [1, 1]),
    "unusable at once": ([-1, 5], [-1, -1], [2], [0, 0]),
    "unusable later": ([4, -1, 6], [4, -1, -1], [3], [1, 0, 0]),
    "far beyond": ([4, 5], [4 + 2**32, -1], [2], [1, 0]),
    "rows of nobody": ([4, 5, -1, -1], [4, -1, 0, 0], [2], [2, 0, 0, 0]),
}


@pytest.mark.parametrize(
    ("chosen", "drafts", "num_rows", "expected"), CASES.values(), ids=CASES.keys()
)
def test_the_first_choice_that_is_no_draft_is_the_last_confirmed(
    chosen: list[int], drafts: list[int], num_rows: list[int], expected: list[int], device: str
) -> None:
    """Matches count, then the target's own token, and nothing from an unusable row on."""
    choices = torch.tensor(chosen, dtype=torch.int32, device=device)
    rows = rows_of(drafts, num_rows, device)
    assert accept_drafts(choices, rows).tolist() == expected
    assert accept_drafts_reference(choices, rows).tolist() == expected


@pytest.mark.parametrize("num_right", [0, 31, 32, 62, 63, 70])
def test_long_drafts_are_followed_to_their_end(num_right: int, device: str) -> None:
    """Over several blocks of rows, with another request right after."""
    chosen = torch.arange(73, dtype=torch.int32)
    drafts = [-1 if row in {num_right, 70} else row for row in range(73)]
    out = torch.full((80,), -9, dtype=torch.int32, device=device)
    accept_drafts(chosen.to(device), rows_of(drafts, [71, 2], device), out=out)
    assert out.tolist() == [num_right + 1, *[0] * 70, 2, 0, *[-9] * 7]


def test_it_compiles_for_hopper_without_spills() -> None:
    """As launched in production."""
    signature = {
        "chosen_ptr": "*i32",
        "rows_ptr": "*i64",
        "num_confirmed_ptr": "*i32",
        "block_size": "constexpr",
    }
    resources = compile_for_sm90(
        "kernels.gpu.accept_drafts",
        "_accept_drafts_kernel",
        signature,
        {"block_size": 32},
        num_warps=1,
        num_stages=1,
    )
    assert resources.spill_bytes == 0
