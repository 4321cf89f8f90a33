import numpy as np
import pytest
import torch
from torch import Tensor

from kernels.gpu import gumbel_choice as columns
from kernels.gpu.gumbel_choice import (
    LOWEST,
    Choice,
    gumbel_choice,
    gumbel_choice_reference,
    new_choice,
    new_workspace,
)
from tests.kernels.gpu.compiled import compile_for_sm90

# The interpreter computes with numpy, which tells of overflow where a GPU quietly has infinity.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.runtime.interpreter")

TEMPERATURES = [0.0, 0.3, 1.0, 2.0]


def rows_of(temperatures: list[float], min_value: float = LOWEST) -> Tensor:
    """Parameters of a row for each temperature; seeds use all 64 bits."""
    rows = torch.zeros(len(temperatures), columns.NUM_FIELDS, dtype=torch.int64)
    floats = rows.view(torch.float64)
    generator = torch.Generator().manual_seed(1)
    rows[:, columns.SEED] = torch.randint(-(2**63), 2**63 - 1, (len(rows),), generator=generator)
    rows[:, columns.POSITION] = torch.arange(len(rows)) + 1009
    floats[:, columns.TEMPERATURE] = torch.tensor(temperatures, dtype=torch.float64)
    floats[:, columns.MIN_VALUE] = min_value
    floats[:, columns.MIN_LOGIT] = LOWEST
    rows[:, columns.IS_USED] = 1
    return rows


def random_rows(num_rows: int, vocab_size: int, spread: float = 4.0) -> Tensor:
    values = np.random.default_rng(vocab_size).standard_normal((num_rows, vocab_size)) * spread
    return torch.from_numpy(values.astype(np.float32))


def assert_same(choice: Choice, logits: Tensor, rows: Tensor) -> None:
    """Tokens exactly, scores but for the last bits of logarithms, -1 where there is no token."""
    num = choice.token_ids.shape[1]
    expected = gumbel_choice_reference(logits, rows, num)
    for token_ids, scores, top in zip(
        choice.token_ids.tolist(), choice.scores.tolist(), expected, strict=True
    ):
        found = len(top.token_ids)
        assert token_ids == top.token_ids + [-1] * (num - found)
        assert scores[:found] == pytest.approx(top.scores, abs=1e-9)


@pytest.mark.parametrize("vocab_size", [1, 63, 1009, 2048, 10_007])
@pytest.mark.parametrize("num", [1, 3, 4])
def test_the_best_of_a_row_are_found(vocab_size: int, num: int, device: str) -> None:
    """The same tokens as by definition, within one block and across many."""
    logits, rows = random_rows(4, vocab_size), rows_of(TEMPERATURES)
    out = new_choice(4, num, device)
    out.token_ids.fill_(-9)
    out.scores.fill_(torch.nan)
    workspace = new_workspace(4, vocab_size, device)
    for tensor in workspace:
        tensor.fill_(torch.nan)
    gumbel_choice(logits.to(device), rows.to(device), num=num, workspace=workspace, out=out)
    assert_same(out, logits, rows)


@pytest.mark.parametrize("spread", [0.0, 1e-3, 30.0, 1e4])
def test_flat_and_steep_rows_are_exact(spread: float, device: str) -> None:
    """Where noise decides alone, and where it decides nothing; many seeds."""
    logits, rows = random_rows(12, 4100, spread), rows_of([0.7] * 12)
    choice = gumbel_choice(logits.to(device), rows.to(device), num=2)
    assert_same(choice, logits, rows)


@pytest.mark.parametrize("num", [1, 3])
def test_ties_go_to_the_lowest_id(num: int, device: str) -> None:
    """Whole numbers at temperature 0, so that equals lie in every block."""
    logits, rows = random_rows(3, 6000, 1.0).round(), rows_of([0.0] * 3)
    choice = gumbel_choice(logits.to(device), rows.to(device), num=num)
    assert_same(choice, logits, rows)


def test_a_threshold_keeps_what_reaches_it(device: str) -> None:
    """A token exactly at the edge is kept; those below it never come, however lucky."""
    logits, rows = random_rows(6, 3000, 1.0).round(), rows_of([1.0] * 6, min_value=-1.0)
    rows.view(torch.float64)[:, columns.MIN_LOGIT] = logits.amax(dim=1).double() - 1.0
    choice = gumbel_choice(logits.to(device), rows.to(device), num=3)
    assert_same(choice, logits, rows)


def test_float64_logits_are_taken_as_they_are(device: str) -> None:
    """Adjusted rows: told apart where float32 would see ties."""
    rows = rows_of(TEMPERATURES)
    logits = random_rows(4, 3000).double().round() + torch.arange(3000).double() * 1e-12
    choice = gumbel_choice(logits.to(device), rows.to(device), num=2)
    assert_same(choice, logits, rows)


def test_rows_of_nobody_have_no_token(device: str) -> None:
    """Nor does what they hold matter to others."""
    logits, rows = random_rows(3, 1009), rows_of([0.7] * 3)
    rows[1] = 2**62
    rows[1, columns.IS_USED] = 0
    logits[1] = torch.nan
    choice = gumbel_choice(logits.to(device), rows.to(device))
    assert choice.token_ids[1].item() == -1
    assert_same(Choice(choice.token_ids[::2], choice.scores[::2]), logits[::2], rows[::2])


@pytest.mark.gpu
def test_logits_beyond_2_to_the_31_elements_are_reached() -> None:
    """Offsets are 64 bits wide."""
    num_rows, vocab_size = 8_200, 262_144
    logits = torch.zeros(num_rows, vocab_size, dtype=torch.bfloat16, device="cuda")
    logits[-2:] = random_rows(2, vocab_size).to("cuda")
    rows = rows_of([0.0, 0.7]).repeat(num_rows // 2, 1)
    choice = gumbel_choice(logits, rows.to("cuda"))
    last = Choice(choice.token_ids[-2:], choice.scores[-2:])
    assert_same(last, logits[-2:].float().cpu(), rows[-2:])


BOUND_SIGNATURE = {
    "row_stride": "i32",
    "vocab_size": "i32",
    "rows_ptr": "*i64",
    "best_ptr": "*fp64",
    "arrival_ptr": "*fp32",
    "block_size": "constexpr",
}
CHOICE_SIGNATURE = BOUND_SIGNATURE | {
    "token_ids_ptr": "*i32",
    "scores_ptr": "*fp64",
    "num": "constexpr",
    "max_blocks": "constexpr",
}


@pytest.mark.parametrize("logits", ["*bf16", "*fp32", "*fp64"])
def test_bounds_compile_for_hopper_without_spills(logits: str) -> None:
    """As launched in production."""
    resources = compile_for_sm90(
        "kernels.gpu.gumbel_choice",
        "_bound_blocks_kernel",
        {"logits_ptr": logits} | BOUND_SIGNATURE,
        {"block_size": columns.BLOCK_SIZE},
        num_warps=columns.NUM_BOUND_WARPS,
        num_stages=1,
        divisible=("row_stride", "vocab_size"),
    )
    assert resources.spill_bytes == 0


@pytest.mark.parametrize("logits", ["*bf16", "*fp64"])
@pytest.mark.parametrize("num", [1, 4])
def test_choices_compile_for_hopper_without_spills(num: int, logits: str) -> None:
    """As launched in production, for a target and for a drafter."""
    resources = compile_for_sm90(
        "kernels.gpu.gumbel_choice",
        "_choose_kernel",
        {"logits_ptr": logits} | CHOICE_SIGNATURE,
        {"num": num, "max_blocks": 64, "block_size": columns.BLOCK_SIZE},
        num_warps=columns.NUM_CHOICE_WARPS,
        num_stages=1,
        divisible=("row_stride", "vocab_size"),
    )
    assert resources.spill_bytes == 0
