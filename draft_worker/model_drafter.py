"""The model drafter: a small model that guesses for all sessions in one batched pass a step.

It ranks tokens with the target's own sampler (`shared.engine.sampling`): same parameters, same
seed, same position-keyed noise; only tokens far behind the best are left out. At temperature > 0
the two then agree far more often than with a greedy guess (Daliri, Musco, Suresh 2024,
arXiv:2408.07978).

Prefix blocks are shared within a job only (its choices, and a session that comes back). A draft
request does not say whose it is, and sharing between tenants would let one see by timing what
another has asked.
"""

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Sequence

from draft_worker.batch import Batch
from draft_worker.chain import Chain
from draft_worker.checks import are_token_ids, is_servable
from draft_worker.confidence import Confidence, Guess
from draft_worker.drafter import Proposal, unseen
from draft_worker.flight import Flight
from draft_worker.limits import DraftLimits
from draft_worker.pace import Pace
from draft_worker.plan import make_plan
from draft_worker.session import DraftSession
from shared.common.clock import Clock
from shared.engine.blocks import BlockPool, OutOfBlocks
from shared.engine.ranking import Ranker
from shared.protocol.limits import MAX_PATH_TOKENS
from shared.protocol.messages import DraftClosed, DraftPath, DraftRequest, Verdict

_NUM_KINDS = 5  # of temperature, in halves: margins mean different things in each


class ModelDrafter:
    """Continuous batching over sessions; see `draft_worker.drafter.Drafter`.

    On a device that computes by itself a step is begun behind the one under way, before that one's
    guesses are read: every chain in it goes on from a guess that only the device knows.
    """

    def __init__(
        self,
        ranker: Ranker,
        pool: BlockPool,
        *,
        vocab_size: int,
        max_model_len: int,
        limits: DraftLimits,
        clock: Clock,
    ) -> None:
        self.pool = pool
        self.sessions: dict[str, DraftSession] = {}
        self.counts: Counter[str] = Counter()  # steps, rows; misses and covered of closed sessions
        self._ranker = ranker
        self._pace = Pace(clock)
        self._flight: Flight | None = None
        self._vocab_size = vocab_size
        self._max_model_len = max_model_len
        self._limits = limits
        self._confidences = [Confidence() for _ in range(_NUM_KINDS)]
        self._ready: dict[str, list[Proposal]] = {}  # to be said, by session
        self._is_idle = True

    @property
    def has_work(self) -> bool:
        """See Drafter."""
        return not self._is_idle or bool(self._ready)

    @property
    def listen_s(self) -> float:
        """See Drafter."""
        is_busy = self._flight is not None and not self._ready
        return self._pace.listen_s if is_busy else 0.0

    @property
    def num_free(self) -> int:
        """See Drafter."""
        return min(self._limits.max_num_seqs - len(self.sessions), self.pool.num_free)

    @property
    def usage(self) -> float:
        """See Drafter."""
        return self.pool.usage

    def open(self, request: DraftRequest) -> bool:
        """See Drafter."""
        if not is_servable(request, self._vocab_size, self._max_model_len):
            return False
        session = self.sessions.get(request.session_id)
        if session is not None:
            if session.resync(request):
                self._wake(session)
                return True
            self.close(request.session_id)
        if self.num_free <= 0:
            return False
        table = self.pool.open(request.token_ids, salt=request.session_id.rpartition("/")[0])
        try:
            table.extend(len(request.token_ids))  # all of the prompt now, so that it cannot starve
        except OutOfBlocks:
            table.release()
            return False
        kind = min(int(request.sampling.temperature * 2), _NUM_KINDS - 1)
        session = DraftSession(request, table, self._confidences[kind])
        session.max_len = min(request.max_len, self._max_model_len)
        self.sessions[request.session_id] = session
        self._is_idle = False
        return True

    def confirm(self, verdict: Verdict) -> bool:
        """See Drafter."""
        session = self.sessions.get(verdict.session_id)
        if session is None:
            return False
        tokens = unseen(session.main.token_ids, session.num_confirmed, verdict)
        if tokens is None or not are_token_ids(tokens, self._vocab_size):
            return False
        if session.num_confirmed + len(tokens) > self._max_model_len:
            return False
        if tokens:
            session.confirm(tokens)
            self._wake(session)
        return True

    def close(self, session_id: str) -> None:
        """See Drafter."""
        session = self.sessions.pop(session_id, None)
        if session is not None:
            self.counts["misses"] += session.num_misses
            self.counts["covered"] += session.num_covered
            session.release()
            self._unsay(session_id)

    def step(self) -> Sequence[Proposal]:
        """See Drafter. What a verdict has made ready goes out before anything is computed."""
        if not self._ready:
            self._compute()
        ready, self._ready = self._ready, {}
        return list(itertools.chain.from_iterable(ready.values()))

    def _compute(self) -> None:
        """Begin a step, behind the one under way if there is one, and take in what that found."""
        before, self._flight = self._flight, self._begin()
        if not self._ranker.can_follow:
            before, self._flight = self._flight, None
        self._is_idle = before is self._flight is None
        if before is not None:
            self._collect(self._land(before))
        elif self._is_idle:
            self._collect(set())

    def _begin(self) -> Flight | None:
        """Begin the step that is worth the most now; None if none is worth anything."""
        before, asked_s = self._flight, self._pace.now_s()
        sessions, limits = self.sessions.values(), self._limits
        awaited = {} if before is None else before.rows
        batch = Batch(make_plan(sessions, limits), sessions, self._ranker, limits, awaited)
        self._drop(batch.starved)
        if not batch.growths:
            return None
        self.counts["steps"] += 1
        self.counts["rows"] += len(batch.growths)
        flight = Flight.begin(batch.growths, self._ranker, limits.num_ranks)
        self._pace.begun(asked_s, is_behind=before is not None)
        return flight

    def _land(self, flight: Flight) -> set[Chain]:
        """Take in what a step found. Returns the chains that grew."""
        waited_from_s = self._pace.now_s()
        tops = flight.collect()
        self._pace.landed(waited_from_s)
        grown, unusable = set(), []
        for (session, chain, *_), (token_ids, scores) in flight.usable(tops):
            if not token_ids:
                unusable.append(session)
                continue
            margin = scores[0] - scores[1] if len(scores) > 1 else math.inf
            chain.push(Guess(token_ids, margin, session.confidence.odds(margin)))
            grown.add(chain)
        self._drop(unusable)
        return grown

    def _drop(self, sessions: Iterable[DraftSession]) -> None:
        """Close sessions that cannot go on, and say so."""
        for session in sessions:
            if self.sessions.get(session.session_id) is session:
                self.close(session.session_id)
                self._ready[session.session_id] = [DraftClosed(session.session_id)]

    def _collect(self, grown: set[Chain]) -> None:
        """Make paths of new guesses: at once where the target has none, else in chunks."""
        for session in self.sessions.values():
            due = [
                chain
                for chain in (session.main, *session.branches.values())
                if len(chain.token_ids) > chain.num_sent
                and (
                    chain not in grown
                    or chain.is_due(self._limits.chunk)
                    or not session.can_grow(chain, self._limits.max_ahead)
                )
            ]
            # A target follows what was said first and most often: the main chain, every time.
            if due and due[0] is not session.main:
                due.insert(0, session.main)
            for chain in due:
                self._send(session, chain)

    def _wake(self, session: DraftSession) -> None:
        """After news: the next step has work, and guesses the target lacks go out before it."""
        self._is_idle = False
        main = session.main
        if self._unsay(session.session_id):
            main.num_sent = session.num_confirmed
        if len(main.token_ids) > main.num_sent == session.num_confirmed:
            self._send(session, main)

    def _unsay(self, session_id: str) -> bool:
        """Drop what is ready to be said of a session, for it is out of date; whether it was any."""
        return self._ready.pop(session_id, None) is not None

    def _send(self, session: DraftSession, chain: Chain) -> None:
        base_len = session.num_confirmed
        tokens = tuple(chain.token_ids[base_len : base_len + MAX_PATH_TOKENS])
        path = DraftPath(session.session_id, base_len, tokens)
        self._ready.setdefault(session.session_id, []).append(path)
        chain.num_sent = len(chain.token_ids)
