"""Top-k, top-p and min-p on a GPU, as one threshold a row: shared/engine/filters.py, for all rows.

Dividing by a temperature keeps the order, so the edge of each filter is one of the row's logits,
and with it any below that rounds to the same quotient:
the largest whose weight, that is the number (top-k) or the mass (top-p) of the logits not below it,
is enough. It is found by bisection over the ordered bits of float64; after each step both ends are
moved onto logits, so that the steps are as many as bits are needed to tell the logits apart: some
12 for bf16. Every step reads the row once. Masses are float64, summed in an order that depends on
the row alone, which is another one than the CPU's: the edge of top-p is the same unless a partial
sum comes within 1e-12 of what is needed, relatively. Top-k and min-p are exact.

Source: threshold instead of sorting as in Qrita, arXiv:2602.01518, with plain bisection.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu import gumbel_choice as columns

BLOCK_SIZE = 2048  # tokens read at a time: 4 a thread
NUM_WARPS = 16  # one program reads a whole row, again and again

# Columns of `filters`, [T, NUM_FILTERS] int64; those marked * hold the bits of a float64.
TOP_K = 0  # 0 or at least V: off
TOP_P = 1  # * 1: off
LOG_MIN_P = 2  # * LOWEST: off
NUM_FILTERS = 3

_TOP_K, _TOP_P, _LOG_MIN_P = tl.constexpr(TOP_K), tl.constexpr(TOP_P), tl.constexpr(LOG_MIN_P)
_NUM_FILTERS, _NUM_FIELDS = tl.constexpr(NUM_FILTERS), tl.constexpr(columns.NUM_FIELDS)
_TEMPERATURE, _IS_USED = tl.constexpr(columns.TEMPERATURE), tl.constexpr(columns.IS_USED)
_MIN_VALUE, _MIN_LOGIT = tl.constexpr(columns.MIN_VALUE), tl.constexpr(columns.MIN_LOGIT)
_LOWEST = tl.constexpr(columns.LOWEST)
_MAX_INT64 = tl.constexpr(2**63 - 1)
# Far above the rounding of a float64 product and its conversion to float32: below this a token
# surely fails the threshold, and what is not below is tested in float64.
_SLACK = tl.constexpr(1e-6)


def filter_rows_reference(logits: Tensor, rows: Tensor, filters: Tensor) -> list[float]:
    """The MIN_VALUE of each row by sorting; arguments as `filter_rows`."""
    thresholds = []
    for row in range(len(rows)):
        temperature = rows.view(torch.float64)[row, columns.TEMPERATURE]
        top_k = int(filters[row, TOP_K]) or logits.shape[1]
        _, top_p, threshold = filters.view(torch.float64)[row].tolist()
        if temperature > 0:
            values = logits[row].double().sort(descending=True).values
            values = (values - values[0]) / temperature
            kept = values[values >= values[:top_k][-1]]
            edge = kept[-1] if top_k < len(values) else values.new_tensor(columns.LOWEST)
            if top_p < 1.0:
                mass = kept.exp().cumsum(0)
                needed = top_p * mass[-1]
                edge = kept[int((mass < needed).sum().clamp(max=len(kept) - 1))]
            threshold = max(threshold, float(edge), columns.LOWEST)
        thresholds.append(threshold)
    return thresholds


@triton.jit  # type: ignore[untyped-decorator]
def _key(value: tl.tensor) -> tl.tensor:
    """An int64 in the order of the float64 values: one for both zeros, which compare as equal."""
    bits = (value + 0.0).to(tl.int64, bitcast=True)
    return bits ^ ((bits >> 63) & _MAX_INT64)


@triton.jit  # type: ignore[untyped-decorator]
def _value(key: tl.tensor) -> tl.tensor:
    bits = key ^ ((key >> 63) & _MAX_INT64)
    return bits.to(tl.float64, bitcast=True)


@triton.jit  # type: ignore[untyped-decorator]
def _range_of_row(row_ptr: tl.tensor, vocab_size: tl.tensor, block_size: tl.constexpr) -> tl.tensor:
    """The best logit, +inf if there is NaN or +inf, and the lowest above -inf."""
    highest = tl.full([block_size], float("-inf"), tl.float64)
    lowest = tl.full([block_size], float("inf"), tl.float64)
    for start in range(0, vocab_size, block_size):
        ids = start + tl.arange(0, block_size)
        x = tl.load(row_ptr + ids, mask=ids < vocab_size, other=float("-inf")).to(tl.float64)
        highest = tl.maximum(highest, tl.where(x < float("inf"), x, float("inf")))
        lowest = tl.minimum(lowest, tl.where(x > float("-inf"), x, float("inf")))
    return tl.max(highest, axis=0), tl.min(lowest, axis=0)


@triton.jit  # type: ignore[untyped-decorator]
def _weigh(  # noqa: PLR0917  # kernels take their arguments by position
    row_ptr: tl.tensor,
    vocab_size: tl.tensor,
    pivot: tl.tensor,
    best: tl.tensor,
    rate: tl.tensor,  # 1 / temperature: a product costs a tenth of a quotient
    is_mass: tl.constexpr,
    block_size: tl.constexpr,
) -> tl.tensor:
    """Weight of the logits from `pivot` up, the lowest of these, and the highest below `pivot`."""
    weights = tl.zeros([block_size], tl.float64)
    above = tl.full([block_size], float("inf"), tl.float64)
    below = tl.full([block_size], float("-inf"), tl.float64)
    for start in range(0, vocab_size, block_size):
        ids = start + tl.arange(0, block_size)
        x = tl.load(row_ptr + ids, mask=ids < vocab_size, other=float("-inf")).to(tl.float64)
        is_above = x >= pivot
        weight = tl.where(is_above, 1.0, 0.0).to(tl.float64)
        if is_mass:
            weight = tl.where(is_above, tl.exp((x - best) * rate), 0.0)
        weights += weight
        above = tl.minimum(above, tl.where(is_above, x, float("inf")))
        below = tl.maximum(below, tl.where(is_above, float("-inf"), x))
    return tl.sum(weights, axis=0), tl.min(above, axis=0), tl.max(below, axis=0)


@triton.jit  # type: ignore[untyped-decorator]
def _edge(  # noqa: PLR0917  # kernels take their arguments by position
    row_ptr: tl.tensor,
    vocab_size: tl.tensor,
    lowest: tl.tensor,
    best: tl.tensor,
    rate: tl.tensor,
    needed: tl.tensor,
    is_mass: tl.constexpr,
    block_size: tl.constexpr,
) -> tl.tensor:
    """The largest logit from `lowest` up whose weight is at least `needed`; `lowest` if none is."""
    enough, too_few = _key(lowest), _key(best) + 1
    while too_few > enough + 1:
        # The mean, rounded down; their sum or difference may be beyond 64 bits.
        middle = (enough >> 1) + (too_few >> 1) + (enough & too_few & 1)
        weight, above, below = _weigh(
            row_ptr, vocab_size, _value(middle), best, rate, is_mass, block_size
        )
        is_enough = weight >= needed
        # At least `middle`: whatever `above` is, the ends come closer, and the loop ends.
        enough = tl.where(is_enough, tl.maximum(_key(above), middle), enough)
        too_few = tl.where(is_enough, too_few, tl.minimum(_key(below) + 1, middle))
    return _value(enough)


@triton.jit  # type: ignore[untyped-decorator]
def _lowest_alike(  # noqa: PLR0917  # kernels take their arguments by position
    row_ptr: tl.tensor,
    vocab_size: tl.tensor,
    edge: tl.tensor,
    best: tl.tensor,
    temperature: tl.tensor,
    block_size: tl.constexpr,
) -> tl.tensor:
    """The lowest logit that is not below `edge` once it is shifted and divided, and so rounded."""
    min_value = (edge - best) / temperature
    lowest = tl.full([block_size], float("inf"), tl.float64)
    for start in range(0, vocab_size, block_size):
        ids = start + tl.arange(0, block_size)
        x = tl.load(row_ptr + ids, mask=ids < vocab_size, other=float("-inf")).to(tl.float64)
        is_alike = ((x - best) / temperature >= min_value) & (x > float("-inf"))
        lowest = tl.minimum(lowest, tl.where(is_alike, x, float("inf")))
    return tl.min(lowest, axis=0)


@triton.jit  # type: ignore[untyped-decorator]
def _filter_row(  # noqa: PLR0917  # kernels take their arguments by position
    row_ptr: tl.tensor,  # [V]
    vocab_size: tl.tensor,
    fields_ptr: tl.tensor,  # [NUM_FIELDS], MIN_VALUE and MIN_LOGIT are written
    temperature: tl.tensor,
    top_k: tl.tensor,
    top_p: tl.tensor,
    log_min_p: tl.tensor,
    block_size: tl.constexpr,
) -> None:
    best, lowest = _range_of_row(row_ptr, vocab_size, block_size)
    if (best > float("-inf")) & (best < float("inf")):
        edge = lowest
        rate = tl.minimum(1.0 / temperature, 1e300)
        min_value = log_min_p
        if (top_k > 0) & (top_k < vocab_size):
            needed = top_k.to(tl.float64)
            edge = _edge(row_ptr, vocab_size, lowest, best, rate, needed, False, block_size)
            edge = _lowest_alike(row_ptr, vocab_size, edge, best, temperature, block_size)
        if top_p < 1.0:
            mass, _, _ = _weigh(row_ptr, vocab_size, edge, best, rate, True, block_size)
            edge = _edge(row_ptr, vocab_size, edge, best, rate, top_p * mass, True, block_size)
        min_value = tl.maximum(tl.maximum(min_value, (edge - best) / temperature), _LOWEST)
        reach = min_value * temperature
        slack = _SLACK * (tl.abs(best) + tl.abs(reach)) + 1e-30
        min_logit = tl.maximum(best + reach - slack, _LOWEST)
        tl.store(fields_ptr + _MIN_VALUE, min_value.to(tl.int64, bitcast=True))
        tl.store(fields_ptr + _MIN_LOGIT, min_logit.to(tl.int64, bitcast=True))


@triton.jit  # type: ignore[untyped-decorator]
def _filter_rows_kernel(  # noqa: PLR0917  # kernels take their arguments by position
    logits_ptr: tl.tensor,  # [T, V]
    row_stride: tl.tensor,  # elements
    vocab_size: tl.tensor,
    rows_ptr: tl.tensor,  # [T, NUM_FIELDS] int64
    filters_ptr: tl.tensor,  # [T, NUM_FILTERS] int64
    block_size: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    fields_ptr = rows_ptr + row * _NUM_FIELDS
    filters_ptr += row * _NUM_FILTERS
    is_used = tl.load(fields_ptr + _IS_USED) != 0
    temperature = tl.load(fields_ptr + _TEMPERATURE).to(tl.float64, bitcast=True)
    top_k = tl.load(filters_ptr + _TOP_K)
    top_p = tl.load(filters_ptr + _TOP_P).to(tl.float64, bitcast=True)
    log_min_p = tl.load(filters_ptr + _LOG_MIN_P).to(tl.float64, bitcast=True)
    is_on = (top_k > 0) | (top_p < 1.0) | (log_min_p > _LOWEST)
    if is_on & (temperature > 0.0) & is_used:
        row_ptr = logits_ptr + row * row_stride
        _filter_row(
            row_ptr, vocab_size, fields_ptr, temperature, top_k, top_p, log_min_p, block_size
        )


def filter_rows(logits: Tensor, rows: Tensor, filters: Tensor) -> None:
    """Set MIN_VALUE and MIN_LOGIT of every row that has a filter and a temperature.

    Args:
        logits: [T, V] bf16, float16, float32 or float64; rows may lie further apart than V.
        rows: [T or more, NUM_FIELDS] int64, contiguous: the columns of gumbel_choice; changed in
            place. A row that is unusable, or not used, is left as it is.
        filters: [T or more, NUM_FILTERS] int64, contiguous; the columns are described above.
    """
    num_rows, vocab_size = logits.shape
    assert logits.stride(1) == 1
    assert rows.shape[1:] == (columns.NUM_FIELDS,)
    assert filters.shape[1:] == (NUM_FILTERS,)
    for tensor in (rows, filters):
        assert tensor.is_contiguous()
        assert len(tensor) >= num_rows
    if num_rows:
        _filter_rows_kernel[(num_rows,)](
            logits,
            logits.stride(0),
            vocab_size,
            rows,
            filters,
            block_size=BLOCK_SIZE,
            num_warps=NUM_WARPS,
            num_stages=1,
        )
