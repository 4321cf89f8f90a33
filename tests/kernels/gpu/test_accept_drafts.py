import pytest
import torch

from kernels.gpu.accept_drafts import accept_drafts, accept_drafts_reference
from tests.kernels.gpu.compiled import compile_for_sm90


def ints(values: list[int], dtype: torch.dtype, device: str) -> torch.Tensor:
    return torch.tensor(values, dtype=dtype, device=device)


CASES = {
    "all right": ([4, 5, 6], [4, 5, -1], [0, 3], [3]),
    "wrong at once": ([4, 5, 6], [9, 5, -1], [0, 3], [1]),
    "wrong later": ([4, 5, 6], [4, 9, -1], [0, 3], [2]),
    "no drafts": ([4, 5], [-1, -1], [0, 1, 2], [1, 1]),
    "unusable at once": ([-1, 5], [-1, -1], [0, 2], [0]),
    "unusable later": ([4, -1, 6], [4, -1, -1], [0, 3], [1]),
    "far beyond": ([4, 5], [4 + 2**32, -1], [0, 2], [1]),
    "requests without rows": ([4, 5], [4, -1], [0, 0, 2, 2], [0, 2, 0]),
}


@pytest.mark.parametrize(
    ("chosen", "drafts", "starts", "expected"), CASES.values(), ids=CASES.keys()
)
def test_the_first_choice_that_is_no_draft_is_the_last_confirmed(
    chosen: list[int], drafts: list[int], starts: list[int], expected: list[int], device: str
) -> None:
    """Matches count, then the target's own token, and nothing from an unusable row on."""
    arguments = (
        ints(chosen, torch.int32, device),
        ints(drafts, torch.int64, device),
        ints(starts, torch.int64, device),
    )
    assert accept_drafts(*arguments).tolist() == expected
    assert accept_drafts_reference(*arguments).tolist() == expected


@pytest.mark.parametrize("num_right", [0, 31, 32, 62, 63, 70])
def test_long_drafts_are_followed_to_their_end(num_right: int, device: str) -> None:
    """Over several blocks of rows, with another request right after."""
    chosen = torch.arange(73, dtype=torch.int32, device=device)
    drafts = chosen.long()
    drafts[[num_right, 70]] = -1
    starts = ints([0, 71, 73], torch.int64, device)
    out = torch.full((2,), -9, dtype=torch.int32, device=device)
    accept_drafts(chosen, drafts, starts, out=out)
    assert out.tolist() == [num_right + 1, 2]


def test_it_compiles_for_hopper_without_spills() -> None:
    """As launched in production."""
    signature = {
        "chosen_ptr": "*i32",
        "drafts_ptr": "*i64",
        "row_starts_ptr": "*i64",
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
