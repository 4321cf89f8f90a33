"""Virtual time: what the clock says follows from the costs, and from nothing of this machine."""

import dataclasses
from functools import partial

import pytest

from bench.timeline import GPU_LIMITS, Load, play
from bench.virtual_time import Costs, Timeline
from target_worker.goodput import Policy

LOAD = Load(streams=2, temperature=0.7, num_answers=3, num_tokens=24, policy=Policy.ON)


def test_calls_are_made_at_their_time_and_in_their_order() -> None:
    """The clock stands where the last one was."""
    time = Timeline()
    called: list[str] = []
    for seconds, name in ((2.0, "last"), (1.0, "first"), (1.0, "second")):
        time.after(seconds, partial(called.append, name))
    time.after(1.5, lambda: time.after(0.1, partial(called.append, "between")))
    time.run(lambda: False)
    assert called == ["first", "second", "between", "last"]
    assert time.monotonic_s() == pytest.approx(2.0)


def test_without_a_drafter_in_time_rounds_are_all_there_is() -> None:
    """One stream, one token a round."""
    costs = dataclasses.replace(Costs(), hop_s=1_000.0)
    load = dataclasses.replace(LOAD, streams=1, num_answers=1)
    played = play(load, costs, GPU_LIMITS)
    assert (played.num_rounds, played.num_drafted) == (24, 0)
    decoding_s = 23 * costs.of_round(1)
    assert played.tokens_per_s == pytest.approx(24 / decoding_s, rel=0.1)  # and the prompt


def test_a_drafter_makes_it_faster_and_every_run_the_same() -> None:
    """All answers are told; the guesses and the times are those of any other run."""
    played = play(LOAD, Costs(), GPU_LIMITS)
    assert played == play(LOAD, Costs(), GPU_LIMITS)
    assert 0 < played.num_accepted <= played.num_drafted
    assert played.num_rounds < 2 * 24
    slow = play(LOAD, dataclasses.replace(Costs(), step_s=0.1), GPU_LIMITS)
    assert played.tokens_per_s > 1.2 * slow.tokens_per_s
