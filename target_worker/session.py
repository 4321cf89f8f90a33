"""A session: one choice of a job, with its confirmed tokens, its cache blocks and its guesses.

Owned by the engine thread. Knows nothing of rounds, queues or other sessions.
"""

from collections.abc import Sequence

from shared.engine.blocks import BlockTable
from shared.protocol.records import FinishReason
from shared.protocol.sampling import SamplingParams
from target_worker.acceptance import Acceptance
from target_worker.admitted import AdmittedJob, Text
from target_worker.drafters import DraftLink
from target_worker.grace import Grace
from target_worker.tree import TokenTree


class Session:
    """One sequence being generated.

    Args:
        session_id: `{job_id}/{choice}`.
        token_ids: prompt and what was confirmed before (by an earlier owner).
        prompt_len: tokens.
        max_len: tokens at which it ends, prompt included; greater than len(token_ids).
        params: the sampler's.
        text: already fed with the output in `token_ids`.
        vocab_size: of the model.
    """

    __slots__ = (
        "_pieces",
        "_stop_ids",
        "acceptance",
        "arrival",
        "epoch",
        "grace",
        "leader",
        "link",
        "max_drafts",
        "max_len",
        "num_cached",
        "num_computed",
        "num_idle_rounds",
        "num_shared",
        "off_for_s",
        "off_until_s",
        "params",
        "prompt_len",
        "reason",
        "salt",
        "session_id",
        "table",
        "text",
        "token_ids",
        "tree",
    )

    def __init__(
        self,
        session_id: str,
        token_ids: Sequence[int],
        *,
        prompt_len: int,
        max_len: int,
        params: SamplingParams,
        text: Text,
        vocab_size: int,
    ) -> None:
        self.session_id = session_id
        self.token_ids = list(token_ids)  # the confirmed tokens
        self.prompt_len = prompt_len
        self.max_len = max_len
        self.params = params
        self.text = text
        self.epoch = 0  # of the claim
        self.reason: FinishReason | None = None
        self._stop_ids = frozenset(params.stop_token_ids)
        self._pieces: list[str] = []  # of tokens that were accepted but not yet told
        # Its place in the cache; None while it waits.
        self.table: BlockTable | None = None
        self.num_computed = 0  # confirmed tokens whose keys and values are in the cache
        self.num_cached = 0  # tokens found in the cache when it last entered
        self.num_shared = 0  # computed tokens in full blocks that others may share
        self.salt = ""  # of its tenant
        self.arrival = 0  # order of admission; assigned by the scheduler
        self.leader: Session | None = None  # the choice whose prompt blocks it will share
        # Its guesses. `max_drafts` is 0 for a job that wants none.
        self.max_drafts = 0
        self.tree = TokenTree(self.token_ids, vocab_size=vocab_size)
        self.link = DraftLink()
        self.acceptance = Acceptance()
        self.grace = Grace()
        self.num_idle_rounds = 0  # in a row with guesses that were not worth a row
        self.off_until_s = 0.0
        self.off_for_s = 0.0

    @classmethod
    def of_choice(cls, admitted: AdmittedJob, index: int, *, vocab_size: int) -> "Session":
        """One choice of a job, with what an earlier owner confirmed of it."""
        choice = admitted.choices[index]
        session = cls(
            f"{admitted.claim.job_id}/{index}",
            (*admitted.prompt_ids, *choice.output_ids),
            prompt_len=len(admitted.prompt_ids),
            max_len=admitted.max_len,
            params=choice.params,
            text=choice.text,
            vocab_size=vocab_size,
        )
        session.epoch = admitted.claim.epoch
        session.salt = admitted.tenant
        session.max_drafts = admitted.max_drafts
        return session

    @property
    def num_output(self) -> int:
        """Output tokens so far."""
        return len(self.token_ids) - self.prompt_len

    @property
    def is_decoding(self) -> bool:
        """Whether only its last confirmed token is not in the cache."""
        return self.table is not None and self.num_computed == len(self.token_ids) - 1

    @property
    def is_prompt_computed(self) -> bool:
        """Whether other choices of the job can share the prompt's blocks now, or need not wait."""
        return self.reason is not None or self.num_computed >= self.prompt_len

    def accept(self, token_ids: Sequence[int]) -> list[int]:
        """Take what a round confirmed, up to where the session ends. Sets `reason` at its end.

        Returns:
            The tokens that count; what follows a stop is discarded.
        """
        kept: list[int] = []
        room = self.max_len - len(self.token_ids)
        if len(token_ids) < room and not self.text.can_stop and self._has_no_stop(token_ids):
            kept += token_ids
            token_ids = ()
        for token_id in token_ids:
            kept.append(token_id)
            if self.text.can_stop:
                self._pieces.append(self.text.push(token_id))
            if token_id in self._stop_ids or self.text.is_stopped:
                self.reason = FinishReason.STOP
                break
            if len(kept) == room:
                self.reason = FinishReason.LENGTH
                break
        self.token_ids += kept
        self.tree.confirm(kept)
        return kept

    def _has_no_stop(self, token_ids: Sequence[int]) -> bool:
        return self._stop_ids.isdisjoint(token_ids) and not self.text.is_stopped

    def text_of(self, kept: Sequence[int]) -> str:
        """The text that accepted tokens let out: once for what each `accept` has returned.

        Apart from it because text takes long to make and, without stop strings, decides nothing.
        """
        pieces, self._pieces = self._pieces, []
        return "".join(pieces or [self.text.push(token_id) for token_id in kept])

    def end(self) -> None:
        """Give up its blocks and guesses: it is over, whatever its reason."""
        self.suspend()
        self.tree = TokenTree((), vocab_size=self.tree.vocab_size)

    def suspend(self) -> None:
        """Leave the cache; what was computed is computed again, or found there, later."""
        if self.table is not None:
            self.table.release()
            self.table = None
        self.num_computed = self.num_shared = 0
