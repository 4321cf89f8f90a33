"""From a plan to the spans of one pass: allocates blocks, forks branches, makes room."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from draft_worker.chain import Chain
from draft_worker.limits import DraftLimits
from draft_worker.plan import Candidate, Plan
from draft_worker.session import DraftSession
from shared.engine.blocks import OutOfBlocks
from shared.engine.ranking import KNOWN, Ranker
from shared.engine.spans import Span


class Growth(NamedTuple):
    """One sequence of the pass."""

    session: DraftSession
    chain: Chain
    span: Span
    follow: int  # the row of the step under way that it goes on from, or KNOWN
    generation: int  # of the chain: once that is another, what comes of it is of no use


class Batch:
    """The spans of one pass: main chains, then prefill chunks, then branches, while tokens last.

    Args:
        plan: of it.
        sessions: all there are.
        ranker: copies blocks.
        limits: of tokens.
        awaited: rows of the step under way, by the chains that they belong to.
    """

    def __init__(
        self,
        plan: Plan,
        sessions: Iterable[DraftSession],
        ranker: Ranker,
        limits: DraftLimits,
        awaited: Mapping[Chain, int],
    ) -> None:
        self.growths: list[Growth] = []
        self.starved: list[DraftSession] = []  # no block left even without any branch
        self._sessions = sessions
        self._ranker = ranker
        self._awaited = awaited
        self._limits = limits
        self._budget = limits.max_num_batched_tokens
        self._is_full = False
        branches = []
        for candidate in plan.growing:
            _, session, chain, _, _ = candidate
            if chain is session.main:
                self._add_main(session)
            else:
                branches.append(candidate)
        for session in plan.prefills:
            self._add_main(session)
        self._add_branches(branches)

    def _add_main(self, session: DraftSession) -> None:
        if self._budget <= 0:
            return
        try:
            self._add(session, session.main)
        except OutOfBlocks:
            self._make_room()
            try:
                self._add(session, session.main)
            except OutOfBlocks:
                self.starved.append(session)

    def _add_branches(self, candidates: list[Candidate]) -> None:
        copies: list[tuple[int, int]] = []
        for _, session, branch, position, token_id in candidates:
            if self._is_full or self._budget <= 0:
                break
            is_new = branch is None
            if is_new and len(session.branches) >= self._limits.num_branches:
                continue
            try:
                copy = session.fork(position, token_id) if is_new else None
                if copy is not None:
                    copies.append(copy)
                self._add(session, session.branches[position, token_id])
            except OutOfBlocks:
                self._is_full = True
        if copies:
            self._ranker.copy_blocks(copies)

    def _add(self, session: DraftSession, chain: Chain) -> None:
        follow = self._awaited[chain] if chain.num_awaited else KNOWN
        span, copy = chain.span(self._budget)
        if copy is not None:  # at once: a fork in this step may start from the copy
            self._ranker.copy_blocks([copy])
        self._budget -= len(span.token_ids)
        self.growths.append(Growth(session, chain, span, follow, chain.generation))

    def _make_room(self) -> None:
        # Branches are bets; a main chain is what every session lives on.
        self._is_full = True
        for session in self._sessions:
            session.drop_branches()
