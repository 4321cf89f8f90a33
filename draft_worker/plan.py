"""Which sequences grow in the next step: those whose next guess is most likely to be of use.

Every candidate has a value, the estimated probability that the target's own tokens lead to its end.
A main chain with nothing ahead has value 1, so sessions whose target has nothing left come first;
main chains fall as they run ahead, and a branch is worth the probability that it becomes the truth.
"""

from collections.abc import Iterable, Sequence
from operator import itemgetter
from typing import NamedTuple

from draft_worker.chain import Chain
from draft_worker.limits import DraftLimits
from draft_worker.session import DraftSession

MAX_CATCH_UP = 16  # tokens to compute before the next guess; with more it is a prefill

# Value; session; chain, or None for a branch yet to be forked at the position, with the token id.
Candidate = tuple[float, DraftSession, Chain | None, int, int]


class Plan(NamedTuple):
    """What the next step should do."""

    growing: list[Candidate]  # most valuable first, at most `max_num_rows`
    prefills: list[DraftSession]  # in the order they came


def make_plan(sessions: Iterable[DraftSession], limits: DraftLimits) -> Plan:
    """Sort what there is to do. Empty lists when nothing is worth a step."""
    growing: list[Candidate] = []
    prefills: list[DraftSession] = []
    for session in sessions:
        if session.main.num_pending <= MAX_CATCH_UP:
            _add_candidates(growing, session, limits)
        elif session.can_grow(session.main, limits.max_ahead):
            prefills.append(session)
    growing.sort(key=itemgetter(0), reverse=True)
    return Plan(growing[: _num_paying(growing, limits)], prefills)


def _num_paying(growing: Sequence[Candidate], limits: DraftLimits) -> int:
    """How many of the candidates, best first, make the step worth the most for its time.

    A step costs `step_cost` rows and then its rows, so the next row pays as long as its value is
    at least what the step so far is worth per row.
    """
    worth, cost = 0.0, limits.step_cost
    for index, candidate in enumerate(growing[: limits.max_num_rows]):
        if candidate[0] * cost < worth:
            return index
        worth += candidate[0]
        cost += 1.0
    return min(len(growing), limits.max_num_rows)


def _add_candidates(growing: list[Candidate], session: DraftSession, limits: DraftLimits) -> None:
    main, min_odds = session.main, limits.min_odds
    shares = session.confidence.shares(limits.num_alternates if limits.num_branches else 0)
    best_share = max(shares, default=0.0)
    limit = session.limit(limits.max_ahead)
    reach = 1.0
    for position, guess in enumerate(main.guesses, session.num_confirmed):
        missed = reach * (1.0 - guess.odds)
        if missed * best_share >= min_odds and shares and position + 1 < limit:
            others = zip(guess.token_ids[1:], shares, strict=False)
            _add_branches(growing, session, position, others, missed, limits)
        reach *= guess.odds
        if reach < min_odds:
            return  # nothing further on is more likely
    if main.num_awaited:
        reach *= session.confidence.mean**main.num_awaited
    if (reach >= min_odds or not main.guesses) and session.can_grow(main, limits.max_ahead):
        growing.append((reach, session, main, 0, 0))


def _add_branches(  # noqa: PLR0917 -- called a hundred times a step
    growing: list[Candidate],
    session: DraftSession,
    position: int,
    others: Iterable[tuple[int, float]],  # tokens that may be right in the place of a guess
    missed: float,
    limits: DraftLimits,
) -> None:
    branches, min_odds = session.branches, limits.min_odds
    has_room = len(branches) < limits.num_branches
    for token_id, share in others:
        value = missed * share
        if value < min_odds:
            continue
        branch = branches.get((position, token_id))
        if branch is None:
            if has_room and token_id not in session.stop_ids:
                growing.append((value, session, None, position, token_id))
            continue
        for guess in branch.guesses:
            value *= guess.odds
        if branch.num_awaited:
            value *= session.confidence.mean**branch.num_awaited
        if value >= min_odds and session.can_grow(branch, limits.max_ahead):
            growing.append((value, session, branch, position, token_id))
