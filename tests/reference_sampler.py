"""The sampler's definition written down a second time, slowly: for tests to compare with.

Plain Python over one token after another; shares with the real one nothing but the noise.
"""

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from hypothesis import strategies as st
from numpy.typing import NDArray

from kernels.gumbel import gumbel_reference
from shared.engine.sampling import Row
from shared.protocol.sampling import SamplingParams


def adjusted(logits: Sequence[float], row: Row) -> list[float]:
    """Penalties, bias and min_tokens by the book, one token after another."""
    params, output = row.params, list(row.token_ids)[row.prompt_len :]
    seen, counts = set(row.token_ids), Counter(output)
    bias = dict(params.logit_bias)
    result = []
    for token_id, logit in enumerate(logits):
        value = logit
        if token_id in seen:
            penalty = params.repetition_penalty
            value = value / penalty if value > 0 else value * penalty
        if counts[token_id]:
            count = counts[token_id]
            value -= params.presence_penalty + params.frequency_penalty * count
        value += bias.get(token_id, 0.0)
        if len(output) < params.min_tokens and token_id in params.stop_token_ids:
            value = -math.inf
        result.append(value)
    return result


def kept_probabilities(values: Sequence[float], params: SamplingParams) -> dict[int, float]:
    """The exact distribution after temperature and filters, by sorting and summing."""
    best = max(values)
    scaled = {i: (value - best) / params.temperature for i, value in enumerate(values)}
    kept = {i: value for i, value in scaled.items() if value > -math.inf}
    if params.top_k:
        edge = sorted(scaled.values(), reverse=True)[: params.top_k][-1]
        kept = {i: value for i, value in kept.items() if value >= edge}
    if params.top_p < 1:
        total, mass = sum(map(math.exp, sorted(kept.values(), reverse=True))), 0.0
        for edge in sorted(kept.values(), reverse=True):
            mass += math.exp(edge)
            if mass >= params.top_p * total:
                break
        kept = {i: value for i, value in kept.items() if value >= edge}
    if params.min_p:
        kept = {i: value for i, value in kept.items() if value >= math.log(params.min_p)}
    total = math.fsum(map(math.exp, kept.values()))
    return {i: math.exp(value) / total for i, value in kept.items()}


def slow_sample(logits: NDArray[np.float32], row: Row) -> int:
    """The definition, token by token."""
    values = adjusted([float(value) for value in logits], row)
    if row.params.temperature == 0:
        return values.index(max(values))
    best = max(values)
    everyone = np.arange(len(values), dtype=np.uint64)
    noise = gumbel_reference(row.params.seed, len(row.token_ids), everyone)
    scores = {
        i: (values[i] - best) / row.params.temperature + float(noise[i])
        for i in kept_probabilities(values, row.params)
    }
    return max(scores, key=lambda i: (scores[i], -i))


def random_logits(vocab_size: int, seed: int, spread: float = 4.0) -> NDArray[np.float32]:
    """Normal logits, [V]."""
    generator = np.random.default_rng(seed)
    return (generator.standard_normal(vocab_size) * spread).astype(np.float32)


def tensor(*rows: NDArray[np.float32]) -> torch.Tensor:
    """Rows as the model gives them, [T, V]."""
    return torch.from_numpy(np.stack(rows))


@st.composite
def all_params(draw: st.DrawFn, vocab_size: int) -> SamplingParams:
    """Parameters of every kind; most of them off most of the time."""

    def maybe(off: float, strategy: st.SearchStrategy[float]) -> float:
        return draw(st.one_of(st.just(off), strategy))

    token_id = st.integers(0, vocab_size + 2)
    return SamplingParams(
        seed=draw(st.integers(0, 2**64 - 1)),
        temperature=draw(st.sampled_from([0.0, 1e-3, 0.7, 1.0, 2.0])),
        top_k=draw(st.sampled_from([0, 0, 1, 5, 50, vocab_size, vocab_size + 1])),
        # Nearer to 1 the edge depends on the order in which the masses are added up.
        top_p=maybe(1.0, st.floats(1e-6, 1.0 - 1e-9)),
        min_p=maybe(0.0, st.floats(0.0, 1.0)),
        repetition_penalty=maybe(1.0, st.floats(0.5, 2.0)),
        presence_penalty=maybe(0.0, st.floats(-2.0, 2.0)),
        frequency_penalty=maybe(0.0, st.floats(-2.0, 2.0)),
        logit_bias=tuple(draw(st.dictionaries(token_id, st.floats(-100, 100), max_size=3)).items()),
        min_tokens=draw(st.sampled_from([0, 0, 3])),
        stop_token_ids=tuple(draw(st.lists(token_id, max_size=2))) if vocab_size > 3 else (),
    )


@st.composite
def all_rows(draw: st.DrawFn, vocab_size: int) -> Row:
    """Any parameters after a short history with repetitions."""
    token_ids = draw(st.lists(st.integers(0, min(vocab_size - 1, 9)), min_size=1, max_size=12))
    return Row(draw(all_params(vocab_size)), token_ids, draw(st.integers(1, len(token_ids))))


@st.composite
def all_logits(draw: st.DrawFn, vocab_size: int) -> NDArray[np.float32]:
    """Continuous values, or few levels so that ties abound; sometimes with tokens masked."""
    logits = random_logits(vocab_size, draw(st.integers(0, 10_000)), draw(st.floats(0.1, 10.0)))
    if draw(st.booleans()):
        logits = np.round(logits).astype(np.float32)
    if draw(st.booleans()):
        logits[1::3] = -np.inf
    return logits
