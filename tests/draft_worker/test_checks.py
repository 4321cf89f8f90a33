"""draft_worker/checks.py: what a stranger may ask for."""

import math

import msgspec
import pytest

from draft_worker.checks import are_token_ids, is_sampling_sound, is_servable
from tests.draft_worker.builders import GREEDY, PENALISED, WARM, make_request

SOUND = [GREEDY, WARM, PENALISED]


@pytest.mark.parametrize("params", SOUND, ids=["greedy", "warm", "penalised"])
def test_what_clients_may_ask_for_is_served(params: msgspec.Struct) -> None:
    """Every sampling the gateway lets through is sound."""
    assert is_sampling_sound(params)  # type: ignore[arg-type]
    assert is_servable(make_request(sampling=params), 48, 100)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "change",
    [
        {"seed": -1},
        {"seed": 1 << 64},
        {"temperature": math.nan},
        {"temperature": -0.1},
        {"temperature": math.inf},
        {"top_k": -1},
        {"top_p": 0.0},
        {"min_p": 2.0},
        {"repetition_penalty": 0.0},
        {"presence_penalty": math.inf},
        {"frequency_penalty": math.nan},
        {"min_tokens": -1},
        {"stop_token_ids": tuple(range(1000))},
        {"stop_token_ids": (1 << 40,)},
        {"logit_bias": ((1, math.nan),)},
        {"logit_bias": ((-1, 1.0),)},
        {"logit_bias": tuple((i, 1.0) for i in range(1000))},
    ],
    ids=str,
)
def test_a_sampling_out_of_range_is_not_served(change: dict[str, object]) -> None:
    """Nothing that could make the sampler fail gets near a batch."""
    assert not is_sampling_sound(msgspec.structs.replace(GREEDY, **change))


@pytest.mark.parametrize(
    "change",
    [
        {"token_ids": ()},
        {"token_ids": (1, 48)},
        {"token_ids": (-1, 2)},
        {"token_ids": (1 << 80,)},
        {"token_ids": (1,) * 100, "prompt_len": 1},
        {"prompt_len": 0},
        {"prompt_len": 4},
        {"max_len": 3},
        {"session_id": ""},
        {"session_id": "x" * 1000},
    ],
    ids=lambda change: next(iter(change)) + str(len(str(change))),
)
def test_a_request_that_makes_no_sense_is_not_served(change: dict[str, object]) -> None:
    """Empty, too long, out of the vocabulary, or nothing left to guess."""
    assert not is_servable(msgspec.structs.replace(make_request(), **change), 48, 100)


def test_no_tokens_are_all_tokens() -> None:
    """An empty verdict names no foreign id."""
    assert are_token_ids((), 48)
    assert not are_token_ids((47, 48), 48)
