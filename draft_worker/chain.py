"""One sequence inside the drafter: a session's main chain, or a branch of it."""

from collections.abc import Sequence

from draft_worker.confidence import Guess
from shared.engine.blocks import BlockCopy, BlockTable
from shared.engine.sampling import Row
from shared.engine.spans import Span
from shared.protocol.sampling import SamplingParams

UNKNOWN = 0  # in the place of a token that the device has yet to choose


class Chain:
    """Confirmed tokens followed by guesses, with the cache blocks that hold them.

    `guesses` belong to the last `len(guesses)` tokens. Owns its block table until `release`.
    """

    __slots__ = (
        "generation",
        "guesses",
        "num_awaited",
        "num_computed",
        "num_sent",
        "row",
        "table",
        "token_ids",
    )

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
        # Tokens whose keys and values are in the cache, or will be when the steps begun are over.
        self.num_computed = num_computed
        self.num_awaited = 0  # guesses of steps under way
        self.generation = 0  # of what is awaited: news that overtake it begin the next one
        self.num_sent = len(token_ids)  # tokens that the target has been told, or knows
        self.guesses: list[Guess] = []
        # Sees `token_ids` grow: one row serves the chain for life.
        self.row = Row(params, token_ids, prompt_len)

    @property
    def num_pending(self) -> int:
        """Tokens to compute before the next guess, at least 1; none while it is awaited."""
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

        Where a guess is awaited, that is the one to compute: its place is known, its token is not.

        Returns:
            The span, and a block to copy before the pass (see `BlockTable.extend`).
        Raises:
            OutOfBlocks: there is no room; nothing has changed.
        """
        start, num_tokens = self.num_computed, len(self.token_ids) + self.num_awaited
        end = min(num_tokens, start + max_tokens)
        copy = self.table.extend(end)
        tokens = [UNKNOWN] if self.num_awaited else self.token_ids[start:end]
        self.num_computed = end
        is_last = end == num_tokens
        self.num_awaited += is_last
        return Span(tokens, start, self.table.block_ids, int(is_last)), copy

    def push(self, guess: Guess) -> None:
        """Append the best token of a guess."""
        self.num_awaited = max(0, self.num_awaited - 1)
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
        self._overtake()
        self.num_sent = min(self.num_sent, num_tokens)
        if self.num_computed > num_tokens:
            self.num_computed = num_tokens
            self.table.roll_back(num_tokens)

    def settle(self, tokens: Sequence[int]) -> None:
        """Append confirmed tokens; everything before them is confirmed too."""
        self._overtake()
        self.token_ids.extend(tokens)
        self.num_sent = len(self.token_ids)

    def release(self) -> None:
        """Give the blocks back. Steps under way may still write to them, before anyone else's."""
        self._overtake()
        self.table.release()

    def _overtake(self) -> None:
        """What was guessed and what is awaited is out of date."""
        self.guesses.clear()
        self.num_awaited = 0
        self.generation += 1
