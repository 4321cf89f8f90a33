import math

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu import filter_rows as filter_columns
from kernels.gpu import gumbel_choice as columns
from kernels.gpu.filter_rows import filter_rows, filter_rows_reference
from kernels.gpu.gumbel_choice import LOWEST
from shared.engine.filters import keep_threshold
from shared.protocol.sampling import SamplingParams
from tests.kernels.gpu.compiled import compile_for_sm90

# The interpreter computes with numpy, which tells of overflow where a GPU quietly has infinity.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.runtime.interpreter")

PARAMS = [
    SamplingParams(seed=0, temperature=0.7),
    SamplingParams(seed=0, temperature=0.7, top_k=1),
    SamplingParams(seed=0, temperature=1.0, top_k=50),
    SamplingParams(seed=0, temperature=1.0, top_p=0.9),
    SamplingParams(seed=0, temperature=0.5, top_p=1e-6),
    SamplingParams(seed=0, temperature=2.0, top_p=1 - 1e-12),
    SamplingParams(seed=0, temperature=1.3, min_p=0.05),
    SamplingParams(seed=0, temperature=1.0, top_k=40, top_p=0.8, min_p=0.01),
    SamplingParams(seed=0, temperature=1e-300, top_k=3, top_p=0.8),
]


def rows_and_filters(params: list[SamplingParams]) -> tuple[Tensor, Tensor]:
    rows = torch.zeros(len(params), columns.NUM_FIELDS, dtype=torch.int64)
    filters = torch.zeros(len(params), filter_columns.NUM_FILTERS, dtype=torch.int64)
    floats, bounds = rows.view(torch.float64), filters.view(torch.float64)
    rows[:, columns.IS_USED] = 1
    floats[:, [columns.MIN_VALUE, columns.MIN_LOGIT]] = LOWEST
    for row, one in enumerate(params):
        floats[row, columns.TEMPERATURE] = one.temperature
        filters[row, filter_columns.TOP_K] = one.top_k
        bounds[row, filter_columns.TOP_P] = one.top_p
        bounds[row, filter_columns.LOG_MIN_P] = math.log(one.min_p) if one.min_p else LOWEST
    return rows, filters


def random_rows(num_rows: int, vocab_size: int) -> Tensor:
    values = np.random.default_rng(vocab_size).standard_normal((num_rows, vocab_size)) * 3
    return torch.from_numpy(values.astype(np.float32))


def expected_of(logits: Tensor, params: SamplingParams) -> float:
    values = logits.double().numpy()
    with np.errstate(over="ignore"):
        return keep_threshold((values - values.max()) / params.temperature, params)


def assert_keeps_the_same(
    logits: Tensor, params: list[SamplingParams], rows: Tensor, thresholds: list[float]
) -> None:
    """A threshold below all logits may be any such number."""
    for values, one, min_value, row in zip(
        logits.double(), params, thresholds, rows.view(torch.float64).tolist(), strict=True
    ):
        scaled = (values - values.max()) / one.temperature
        kept = scaled >= expected_of(values, one)
        assert torch.equal(scaled >= min_value, kept)
        assert not kept[values < row[columns.MIN_LOGIT]].any()


def check_kept(logits: Tensor, params: list[SamplingParams], device: str) -> None:
    """Each row keeps what the CPU keeps."""
    rows, filters = rows_and_filters(params)
    ours = rows.to(device)
    filter_rows(logits.to(device), ours, filters.to(device))
    ours = ours.cpu()
    thresholds = ours.view(torch.float64)[:, columns.MIN_VALUE].tolist()
    assert_keeps_the_same(logits, params, ours, thresholds)


@pytest.mark.parametrize("vocab_size", [1, 63, 1009, 4099])
def test_the_same_tokens_are_kept_as_on_the_cpu(vocab_size: int, device: str) -> None:
    """For every filter alone and for all together."""
    logits = random_rows(len(PARAMS), vocab_size)
    check_kept(logits, PARAMS, device)
    rows, filters = rows_and_filters(PARAMS)
    expected = filter_rows_reference(logits, rows, filters)
    assert_keeps_the_same(logits, PARAMS, rows, expected)


def test_ties_at_the_edge_all_stay(device: str) -> None:
    """Few levels, masked tokens, both signs and both zeros."""
    logits = random_rows(len(PARAMS), 3000).div(2).round()
    logits[:, ::7] *= -0.0
    logits[:, 1::3] = -torch.inf
    check_kept(logits, PARAMS, device)


@pytest.mark.parametrize("tiny", [2.0**-1040, 1e-300, 1e-20])
def test_logits_that_round_to_one_value_are_a_tie(tiny: float, device: str) -> None:
    """Shifted by the best and divided they are the same number, and weigh together in top-p."""
    logits = torch.zeros(1, 63, dtype=torch.float64)
    logits[0, [8, 22, 24, 36]] = 1.0
    logits[0, 0] = tiny
    check_kept(logits, [SamplingParams(seed=0, temperature=0.7, top_k=5, top_p=0.5)], device)


@triton.jit  # type: ignore[untyped-decorator]
def _keys_kernel(values_ptr: tl.tensor, keys_ptr: tl.tensor, num: tl.constexpr) -> None:
    places = tl.arange(0, num)
    tl.store(keys_ptr + places, filter_columns._key(tl.load(values_ptr + places)))


def test_keys_are_in_the_order_of_values(device: str) -> None:
    """Both zeros have one key: with two, bisection went back and forth between them for ever."""
    values = [-math.inf, -3.0, -5e-324, -0.0, 0.0, 5e-324, 1.0, math.inf]
    keys = torch.empty(len(values), dtype=torch.int64, device=device)
    exact = torch.tensor(values, dtype=torch.float64, device=device)
    _keys_kernel[(1,)](exact, keys, num=len(values))
    known = keys.tolist()
    assert known == sorted(known)
    assert known[3] == known[4]
    assert len(set(known)) == len(values) - 1


@pytest.mark.parametrize("is_negative_first", [False, True])
@pytest.mark.parametrize("top_k", [1, 2, 30, 60])
def test_zeros_of_both_signs_are_one_edge(
    top_k: int,
    is_negative_first: bool,  # noqa: FBT001 - a parameter of the test
    device: str,
) -> None:
    """The search for it ends, and they all stay."""
    zeros = [-0.0, 0.0] if is_negative_first else [0.0, -0.0]
    logits = torch.tensor([[1.0, *zeros * 20, *[-1.0] * 22]])
    params = [SamplingParams(seed=0, temperature=1.0, top_k=top_k, top_p=0.9)]
    check_kept(logits, params, device)


def test_float64_logits_are_taken_as_they_are(device: str) -> None:
    """Adjusted rows: told apart where float32 would see ties."""
    params = [PARAMS[2], PARAMS[3], PARAMS[7]]
    logits = random_rows(3, 1009).double() + torch.arange(1009).double() * 1e-11
    check_kept(logits, params, device)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_unusable_rows_and_rows_of_nobody_are_left_alone(bad: float, device: str) -> None:
    """They have no edge; the sampler finds out what they are."""
    logits = torch.full((2, 63), bad)
    rows, filters = rows_and_filters([PARAMS[7]] * 2)
    logits[0, 5] = bad
    rows[1, columns.IS_USED] = 0
    ours = rows.to(device)
    filter_rows(logits.to(device), ours, filters.to(device))
    assert torch.equal(ours.cpu(), rows)


@pytest.mark.parametrize("logits", ["*bf16", "*fp64"])
def test_filters_compile_for_hopper_without_spills(logits: str) -> None:
    """As launched in production."""
    signature = {
        "logits_ptr": logits,
        "row_stride": "i32",
        "vocab_size": "i32",
        "rows_ptr": "*i64",
        "filters_ptr": "*i64",
        "block_size": "constexpr",
    }
    resources = compile_for_sm90(
        "kernels.gpu.filter_rows",
        "_filter_rows_kernel",
        signature,
        {"block_size": filter_columns.BLOCK_SIZE},
        num_warps=filter_columns.NUM_WARPS,
        num_stages=1,
        divisible=("row_stride", "vocab_size"),
    )
    assert resources.spill_bytes == 0
