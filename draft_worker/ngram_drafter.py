"""The n-gram drafter (prompt lookup): guesses that a session repeats itself. No model, no torch.

Each session's index sees its own tokens alone; nothing passes from one session to another.
After prompt lookup decoding (Saxena 2023).
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from draft_worker.checks import are_token_ids, is_servable
from draft_worker.drafter import Proposal, unseen
from draft_worker.limits import DraftLimits
from draft_worker.ngram_index import NgramIndex
from shared.protocol.messages import DraftPath, DraftRequest, Verdict

_MIN_N, _MAX_N = 2, 4  # one token alone matches by chance; beyond four, matches are the same ones
_ANY_VOCABULARY = 1 << 31
_ANY_LENGTH = 1 << 31


@dataclass(slots=True)
class _Lookup:
    """One session: its confirmed tokens, and the continuation that its target already has."""

    index: NgramIndex
    max_len: int
    sent: tuple[int, ...] = ()  # what was last proposed and not yet confirmed

    def settle(self, tokens: Sequence[int]) -> None:
        """Take in confirmed tokens."""
        self.index.extend(tokens)
        is_right = self.sent[: len(tokens)] == tuple(tokens)
        self.sent = self.sent[len(tokens) :] if is_right else ()


class NgramDrafter:
    """See `draft_worker.drafter.Drafter`. A step answers every session that has news."""

    def __init__(
        self,
        *,
        limits: DraftLimits,
        vocab_size: int = _ANY_VOCABULARY,
        max_model_len: int = _ANY_LENGTH,
    ) -> None:
        self.counts: Counter[str] = Counter()  # paths, and the tokens in them
        self._limits = limits
        self._vocab_size = vocab_size
        self._max_model_len = max_model_len
        self._sessions: dict[str, _Lookup] = {}
        self._with_news: dict[str, None] = {}  # in the order the news came

    @property
    def has_work(self) -> bool:
        """See Drafter."""
        return bool(self._with_news)

    @property
    def listen_s(self) -> float:
        """See Drafter."""
        return 0.0

    @property
    def num_free(self) -> int:
        """See Drafter."""
        return self._limits.max_num_seqs - len(self._sessions)

    @property
    def usage(self) -> float:
        """See Drafter."""
        return len(self._sessions) / self._limits.max_num_seqs

    def open(self, request: DraftRequest) -> bool:
        """See Drafter."""
        if not is_servable(request, self._vocab_size, self._max_model_len):
            return False
        if request.session_id not in self._sessions and self.num_free <= 0:
            return False
        index = NgramIndex(request.token_ids, min_n=_MIN_N, max_n=_MAX_N)
        max_len = min(request.max_len, self._max_model_len)
        self._sessions[request.session_id] = _Lookup(index, max_len)
        self._with_news[request.session_id] = None
        return True

    def confirm(self, verdict: Verdict) -> bool:
        """See Drafter."""
        session = self._sessions.get(verdict.session_id)
        if session is None:
            return False
        known = session.index.token_ids
        tokens = unseen(known, len(known), verdict)
        if tokens is None or not are_token_ids(tokens, self._vocab_size):
            return False
        if len(known) + len(tokens) > session.max_len:
            return False
        if tokens:
            session.settle(tokens)
            self._with_news[verdict.session_id] = None
        return True

    def close(self, session_id: str) -> None:
        """See Drafter."""
        self._sessions.pop(session_id, None)
        self._with_news.pop(session_id, None)

    def step(self) -> Sequence[Proposal]:
        """See Drafter."""
        paths: list[Proposal] = []
        for session_id in self._with_news:
            session = self._sessions[session_id]
            num_confirmed = len(session.index.token_ids)
            num_tokens = min(self._limits.max_ahead, session.max_len - num_confirmed)
            guess = session.index.continuation(num_tokens) if num_tokens > 0 else ()
            # What the target has is not repeated until half of it is used up.
            if guess and not _is_known(guess, session.sent):
                session.sent = guess
                self.counts.update(paths=1, draft_tokens=num_tokens)
                paths.append(DraftPath(session_id, num_confirmed, guess))
        self._with_news.clear()
        return paths


def _is_known(guess: tuple[int, ...], sent: tuple[int, ...]) -> bool:
    return 2 * len(sent) > len(guess) and guess[: len(sent)] == sent
