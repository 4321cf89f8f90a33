"""draft_worker/plan.py: who gets a row of the next step."""

from dataclasses import replace

from draft_worker.confidence import Confidence, Guess
from draft_worker.limits import DraftLimits
from draft_worker.plan import MAX_CATCH_UP, make_plan
from draft_worker.session import DraftSession
from shared.engine.blocks import BlockPool
from tests.draft_worker.builders import make_request

LIMITS = DraftLimits(max_ahead=8, num_branches=4, num_alternates=2, min_odds=0.0, step_cost=1e9)


def make_session(name: str, *odds: float, num_tokens: int = 3) -> DraftSession:
    """A session with one guess for each of the odds; runners-up are 90 and 91."""
    request = make_request(name, token_ids=(1,) * num_tokens)
    session = DraftSession(request, BlockPool(64, 4).open(request.token_ids), Confidence())
    for one in odds:
        session.main.span(100)
        session.main.push(Guess([10, 90, 91], 0.5, one))
    return session


def test_a_target_with_nothing_left_comes_first() -> None:
    """Then main chains by how likely their end is to be reached."""
    sessions = [make_session("a/0", 0.9, 0.9), make_session("b/0"), make_session("c/0", 0.9)]
    growing = make_plan(sessions, replace(LIMITS, num_branches=0)).growing
    assert [session.session_id for _, session, *_ in growing] == ["b/0", "c/0", "a/0"]


def test_a_likely_correction_beats_a_deep_guess() -> None:
    """After a near-tie the runner-up's branch is worth more than going on; after a sure one not."""
    doubtful = make_plan([make_session("a/0", 0.3)], LIMITS).growing
    sure = make_plan([make_session("a/0", 0.95)], LIMITS).growing
    assert (doubtful[0][2], doubtful[0][4]) == (None, 90)
    assert sure[0][2] is sure[0][1].main


def test_a_branch_that_exists_goes_on_from_its_end() -> None:
    """Its own guesses lower its value."""
    session = make_session("a/0", 0.5)
    fresh = {c[4]: c[0] for c in make_plan([session], LIMITS).growing if c[2] is None}
    session.fork(3, 90)
    branch = session.branches[3, 90]
    branch.span(1)
    branch.push(Guess([7, 8], 0.5, 0.5))
    (value,) = [c[0] for c in make_plan([session], LIMITS).growing if c[2] is branch]
    assert value == fresh[90] * 0.5


def test_a_row_is_added_only_while_it_pays() -> None:
    """Where a step costs little beside its rows, unlikely ones are left out."""
    session = make_session("a/0", 0.9)
    cheap_rows = make_plan([session], LIMITS).growing
    dear_rows = make_plan([session], replace(LIMITS, step_cost=1.0)).growing
    assert len(cheap_rows) == 3
    assert [chain for _, _, chain, _, _ in dear_rows] == [session.main]


def test_rows_are_bounded_and_hopeless_ones_left_out() -> None:
    """By number, and by odds."""
    session = make_session("a/0", 0.5, 0.5, 0.5)
    assert len(make_plan([session], replace(LIMITS, max_num_rows=2)).growing) == 2
    assert make_plan([session], replace(LIMITS, min_odds=0.9)).growing == []


def test_a_long_prompt_is_a_prefill() -> None:
    """It gets chunks, not one of the rows."""
    new = make_session("a/0", num_tokens=MAX_CATCH_UP + 1)
    plan = make_plan([new, make_session("b/0")], LIMITS)
    assert plan.prefills == [new]
    assert len(plan.growing) == 1


def test_nothing_grows_beyond_the_limit_ahead() -> None:
    """Neither the main chain nor a branch at its end."""
    session = make_session("a/0", 0.5, 0.5)
    plan = make_plan([session], replace(LIMITS, max_ahead=2))
    assert {(chain, position) for _, _, chain, position, _ in plan.growing} == {(None, 3)}
