"""One session inside the model drafter: main chain, branches, and what verdicts do to them."""

from collections.abc import Sequence

from draft_worker.chain import Chain
from draft_worker.confidence import Confidence, Guess
from shared.engine.adjustments import changes_logits
from shared.engine.blocks import BlockCopy, BlockTable
from shared.protocol.messages import DraftRequest


class DraftSession:
    """Confirmed tokens, one main chain of guesses, and branches from the likely corrections.

    A branch is keyed by (position, token id): it agrees with the main chain before that position
    and has that token there.
    """

    def __init__(self, request: DraftRequest, table: BlockTable, confidence: Confidence) -> None:
        self.session_id = request.session_id
        self.params = request.sampling
        self.max_len = request.max_len
        self.num_confirmed = len(request.token_ids)
        self.branches: dict[tuple[int, int], Chain] = {}
        self.confidence = confidence
        self.num_misses = 0  # corrections where a guess was
        self.num_covered = 0  # of these, corrections whose continuation was already there
        # Whether what is chosen next may depend on tokens before, other than by the model.
        self.is_adjusted = changes_logits(request.sampling, 0)
        self.stop_ids = frozenset(request.sampling.stop_token_ids)
        self.main = Chain(
            list(request.token_ids),
            table,
            params=request.sampling,
            prompt_len=request.prompt_len,
            num_computed=table.num_cached_tokens,
        )

    @property
    def num_ahead(self) -> int:
        """Guesses of the main chain beyond the confirmed tokens."""
        return len(self.main.token_ids) - self.num_confirmed

    def can_grow(self, chain: Chain, max_ahead: int) -> bool:
        """Whether another guess may be added to a chain of this session."""
        if self.has_ended(chain) or (chain.num_awaited and self.is_adjusted):
            return False
        return len(chain.token_ids) + chain.num_awaited < self.limit(max_ahead)

    def limit(self, max_ahead: int) -> int:
        """Tokens that a chain may come to."""
        return min(self.max_len, self.num_confirmed + max_ahead)

    def has_ended(self, chain: Chain) -> bool:
        """Whether the last known token of a chain ends it; a prompt may well have a stop token."""
        tokens = chain.token_ids
        return tokens[-1] in self.stop_ids and len(tokens) > chain.row.prompt_len

    def confirm(self, token_ids: Sequence[int]) -> None:
        """The target confirmed these next tokens: advance, and keep what is still right."""
        for token_id in token_ids:
            main = self.main
            position = self.num_confirmed
            if position == len(main.token_ids):
                main.settle((token_id,))
            else:
                self._compare(main, position, token_id)
            self.num_confirmed += 1
        main = self.main
        del main.guesses[: len(main.guesses) - self.num_ahead]
        main.num_sent = max(main.num_sent, self.num_confirmed)
        self._drop_branches(below=self.num_confirmed)

    def fork(self, position: int, token_id: int) -> BlockCopy | None:
        """Start a branch with another token at a guessed position.

        Raises:
            OutOfBlocks: there is no room; nothing has changed.
        """
        branch, copy = self.main.fork(position, token_id)
        self.branches[position, token_id] = branch
        return copy

    def resync(self, request: DraftRequest) -> bool:
        """Fall in step with a repeated request: keep what agrees, and tell all guesses again.

        Returns:
            False when the request does not start with all confirmed tokens, or asks for something
            else: this is not the same session any more, and nothing has changed.
        """
        tokens, main = request.token_ids, self.main
        num_kept = self.num_confirmed
        if (
            tuple(main.token_ids[:num_kept]) != tokens[:num_kept]
            or request.sampling != self.params
            or request.prompt_len != main.row.prompt_len
        ):
            return False
        self.max_len = request.max_len
        self.confirm(tokens[num_kept:])
        main = self.main
        for chain in (main, *self.branches.values()):
            chain.num_sent = self.num_confirmed
        return True

    def drop_branches(self) -> None:
        """Give back the blocks of all branches."""
        self._drop_branches(below=len(self.main.token_ids) + 1)

    def release(self) -> None:
        """Give back all blocks; what is confirmed and computed stays in the prefix cache."""
        self.drop_branches()
        main = self.main
        main.table.publish(main.token_ids[: min(self.num_confirmed, main.num_computed)])
        main.release()

    def guess_at(self, position: int) -> Guess:
        """The main chain's guess at a position beyond the confirmed tokens."""
        main = self.main
        return main.guesses[position - len(main.token_ids)]

    def _compare(self, main: Chain, position: int, token_id: int) -> None:
        self.confidence.observe(self.guess_at(position), token_id)
        if main.token_ids[position] == token_id:
            return
        self.num_misses += 1
        branch = self.branches.pop((position, token_id), None)
        self.drop_branches()
        if branch is None:
            main.cut(position)
            main.settle((token_id,))
            return
        self.num_covered += bool(branch.guesses)
        main.release()
        self.main = branch

    def _drop_branches(self, *, below: int) -> None:
        for key in [key for key in self.branches if key[0] < below]:
            self.branches.pop(key).release()
