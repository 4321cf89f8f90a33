"""How likely a guess is right, by its position in a draft.

Decayed counts per position of P(right | all before it were right). A session starts from what its
worker sees, a worker from a constant; evidence outweighs that within a few rounds.
"""

from collections.abc import Sequence

from shared.protocol.limits import MAX_SPECULATIVE_TOKENS

_PRIOR = 0.65  # of a worker that has seen nothing: the middle of what drafters reach
_PRIOR_WEIGHT = 6.0  # observations that the prior is worth
_MEMORY = 0.97  # of older counts per new one: about the last 33 rounds count


class Acceptance:
    """Estimates for one session, or (without a parent) for all sessions of a worker."""

    __slots__ = ("_parent", "_rates", "_tried", "_won")

    def __init__(self, parent: "Acceptance | None" = None) -> None:
        self._parent = parent
        self._won = [0.0] * MAX_SPECULATIVE_TOKENS
        self._tried = [0.0] * MAX_SPECULATIVE_TOKENS
        self._rates: list[float] = []  # of all positions, of who has no parent, until the next news

    def observe(self, num_drafted: int, num_accepted: int) -> None:
        """A round held `num_drafted` guesses, of which the first `num_accepted` were right."""
        won, tried = self._won, self._tried
        self._rates = []
        for position in range(min(num_drafted, num_accepted + 1)):
            tried[position] = tried[position] * _MEMORY + 1.0
            won[position] = won[position] * _MEMORY + (position < num_accepted)
        if self._parent is not None:
            self._parent.observe(num_drafted, num_accepted)

    def forget(self) -> None:
        """Start from the prior again: the drafter may be another one."""
        self._won = [0.0] * MAX_SPECULATIVE_TOKENS
        self._tried = [0.0] * MAX_SPECULATIVE_TOKENS
        self._rates = []

    def rates(self, num: int) -> list[float]:
        """[num] P(the guess at this position is right | those before it are)."""
        if self._parent is not None:
            return self._with_prior(self._parent.rates(num))
        if not self._rates:
            self._rates = self._with_prior([_PRIOR] * MAX_SPECULATIVE_TOKENS)
        return self._rates[:num]

    def _with_prior(self, priors: Sequence[float]) -> list[float]:
        return [
            (won + _PRIOR_WEIGHT * prior) / (tried + _PRIOR_WEIGHT)
            for won, tried, prior in zip(self._won, self._tried, priors, strict=False)
        ]

    def survival(self, num: int) -> list[float]:
        """[num] P(the first i + 1 guesses are all right); falling. At most as many as are kept."""
        product = 1.0
        return [product := product * rate for rate in self.rates(num)]
