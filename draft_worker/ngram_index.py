"""Where in a sequence its own last tokens occurred before: what followed then may follow now."""

from collections.abc import Sequence


class NgramIndex:
    """One session's tokens and, per n-gram, where its latest earlier occurrence ended.

    Appending costs one dictionary entry per n, a lookup at most one read per n, at any length.
    """

    def __init__(self, token_ids: Sequence[int], *, min_n: int, max_n: int) -> None:
        self.token_ids: list[int] = []
        self._sizes = range(max_n, min_n - 1, -1)  # the longest match is the best bet
        self._ends: dict[tuple[int, ...], int] = {}
        self.extend(token_ids)

    def extend(self, token_ids: Sequence[int]) -> None:
        """Append confirmed tokens."""
        tokens = self.token_ids
        for token_id in token_ids:
            # Entered only now that something follows: a suffix never finds itself.
            for size in self._sizes:
                if len(tokens) >= size:
                    self._ends[tuple(tokens[-size:])] = len(tokens)
            tokens.append(token_id)

    def continuation(self, num_tokens: int) -> tuple[int, ...]:
        """What followed the longest recent match of the last tokens; empty without a match.

        A match that reaches the end goes on with its own copy, so a short period is repeated.
        """
        tokens = self.token_ids
        for size in self._sizes:
            if len(tokens) < size:
                continue
            end = self._ends.get(tuple(tokens[-size:]))
            if end is not None:
                period = tokens[end : end + num_tokens]
                repeats = -(-num_tokens // len(period))
                return tuple((period * repeats)[:num_tokens])
        return ()
