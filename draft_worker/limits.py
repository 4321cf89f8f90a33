"""How much a drafter may do, with the reason for each default."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DraftLimits:
    """Bounds on sessions, on how far guesses run ahead, and on the work of one step.

    The defaults were tuned by simulating target and drafter in virtual time, with the bundled pair
    and measured costs (round 2.3 ms, step 0.42 + 0.065 ms a row, hop 0.4 ms), except `max_ahead`,
    which was tuned on the running system: docs/decisions.md.
    """

    max_num_seqs: int = 64  # sessions guessed for at once
    max_ahead: int = 8  # guesses beyond the last confirmed token: K; more only costs CPU here
    num_branches: int = 6  # branches alive in one session; 0 turns them off
    num_alternates: int = 2  # runners-up per position that may become a branch
    max_num_rows: int = 32  # sequences that grow in one step: it bounds the latency of a step
    max_num_batched_tokens: int = 256  # tokens computed in one step; a longer prefill is chunked
    step_cost: float = 6.0  # of a step without rows, in rows; 2 x 128 on one CPU core
    min_odds: float = 0.04  # a guess less likely than this to be asked for is never worth a row
    chunk: int = 2  # guesses sent at a time once the target has some; saves hops

    @property
    def num_ranks(self) -> int:
        """Best tokens of each position to be known: the guess, and at least one runner-up."""
        return 1 + max(1, self.num_alternates)
