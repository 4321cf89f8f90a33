"""One sequence inside the drafter: a session's main chain, or a branch of it."""

from collections.abc import Sequence

from draft_worker.confidence import Guess
from shared.engine.blocks import BlockCopy, BlockTable
from shared.engine.sampling import Row
from shared.engine.spans import Span
from shared.protocol.sampling import SamplingParams


class Chain:
    """Confirmed tokens followed by guesses, with the cache blocks that hold them.

    `guesses` belong to the last `len(guesses)` tokens. Owns its block table until `release`.
    """

    __slots__ = ("guesses", "num_computed", "num_sent", "row", "table", "token_ids")

    def __init__(
        self,
        token_ids: list[int],
        table: BlockTable,
        *,
        params: SamplingParams,
        prompt_len: int,
        num_computed: int,
    ) -> None:
        self.token_ids = token_ids
        self.table = table
        self.num_computed = num_computed  # tokens whose keys and values are in the cache
        self.num_sent = len(token_ids)  # tokens that the target has been told, or knows
        self.guesses: list[Guess] = []
        # Sees `token_ids` grow: one row serves the chain for life.
        self.row = Row(params, token_ids, prompt_len)

    @property
    def num_pending(self) -> int:
        """Tokens to compute before the next guess, at least 1."""
        return len(self.token_ids) - self.num_computed

    def is_due(self, chunk: int) -> bool:
        """Whether the target should hear of the unsent guesses: fewer hops against fresher guesses.

        The first one goes at once, then as many as it has twice over, then `chunk` at a time.
        """
        num_unsent = len(self.token_ids) - self.num_sent
        num_known = len(self.guesses) - num_unsent
        return num_unsent >= chunk or num_unsent > num_known

    def span(self, max_tokens: int) -> tuple[Span, BlockCopy | None]:
        """The next tokens to compute, with room in the block table; they count as computed.

        Returns:
            The span, and a block to copy before the pass (see `BlockTable.extend`).
        Raises:
            OutOfBlocks: there is no room; nothing has changed.
        """
        start = self.num_computed
        end = min(len(self.token_ids), start + max_tokens)
        copy = self.table.extend(end)
        self.num_computed = end
        is_last = end == len(self.token_ids)
        return Span(self.token_ids[start:end], start, self.table.block_ids, int(is_last)), copy

    def push(self, guess: Guess) -> None:
        """Append the best token of a guess."""
        self.token_ids.append(guess.token_ids[0])
        self.guesses.append(guess)

    def fork(self, position: int, token_id: int) -> tuple["Chain", BlockCopy | None]:
        """A branch that has `token_id` at `position`, where this chain has another.

        Everything before `position` is computed. The copy, if any, comes before the next pass.

        Raises:
            OutOfBlocks: there is no room for the partial block.
        """
        table, copy = self.table.fork(position)
        tokens = self.token_ids[:position]
        tokens.append(token_id)
        branch = Chain(
            tokens,
            table,
            params=self.row.params,
            prompt_len=self.row.prompt_len,
            num_computed=position,
        )
        return branch, copy

    def cut(self, num_tokens: int) -> None:
        """Drop all guesses and everything from position `num_tokens` on."""
        del self.token_ids[num_tokens:]
        self.guesses.clear()
        self.num_sent = min(self.num_sent, num_tokens)
        if self.num_computed > num_tokens:
            self.num_computed = num_tokens
            self.table.roll_back(num_tokens)

    def settle(self, tokens: Sequence[int]) -> None:
        """Append confirmed tokens; everything before them is confirmed too."""
        self.guesses.clear()
        self.token_ids.extend(tokens)
        self.num_sent = len(self.token_ids)

    def release(self) -> None:
        """Give the blocks back."""
        self.table.release()
