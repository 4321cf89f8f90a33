"""Which sequences grow in the next step: those whose next guess is most likely to be of use.

Every candidate has a value, the estimated probability that the target's own tokens lead to its end.
A main chain with nothing ahead has value 1, so sessions whose target has nothing left come first;
main chains fall as they run ahead, and a branch is worth the probability that it becomes the truth.
"""

from collections.abc import Iterable, Iterator, Sequence
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
            growing += _candidates(session, limits)
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


def _candidates(session: DraftSession, limits: DraftLimits) -> Iterator[Candidate]:
    main = session.main
    reach = 1.0
    position = session.num_confirmed
    for guess in main.guesses:
        missed = reach * (1.0 - guess.odds)
        if missed >= limits.min_odds and limits.num_branches:
            yield from _branches(session, position, missed, limits)
        reach *= guess.odds
        position += 1
    if (reach >= limits.min_odds or not main.guesses) and session.can_grow(main, limits.max_ahead):
        yield reach, session, main, 0, 0


def _branches(
    session: DraftSession, position: int, missed: float, limits: DraftLimits
) -> Iterator[Candidate]:
    share = session.confidence.share
    others = session.guess_at(position).token_ids[1 : 1 + limits.num_alternates]
    has_room = len(session.branches) < limits.num_branches
    for rank, token_id in enumerate(others, 1):
        value = missed * share(rank)
        branch = session.branches.get((position, token_id))
        if branch is not None:
            for guess in branch.guesses:
                value *= guess.odds
            is_possible = session.can_grow(branch, limits.max_ahead)
        else:
            is_possible = has_room and session.can_follow(position, token_id, limits.max_ahead)
        if is_possible and value >= limits.min_odds:
            yield value, session, branch, position, token_id
