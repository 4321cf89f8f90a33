"""How many guesses of each session to verify in a round, so that tokens per second are highest.

After SmartSpec / TurboSpec (Liu et al. 2024, arXiv:2406.14066): expected tokens of a round over its
expected seconds, with the rows given out one by one to the guess most likely to survive.
"""

from collections.abc import Sequence

from target_worker.cost import RoundCost


def draft_lengths(
    survivals: Sequence[Sequence[float]],
    *,
    num_sequences: int,
    num_rows: int,
    cost: RoundCost,
    max_rows: int,
) -> list[int]:
    """Draft tokens to verify, per session.

    Args:
        survivals: per session the chance that its first i + 1 guesses are all right, as many
            entries as it has guesses; falling.
        num_sequences: in the round, those in prefill included.
        num_rows: that the round has anyway: one per session that decodes, and prefill chunks.
        cost: of a round.
        max_rows: guesses that may be added in all.
    """
    lengths = [0] * len(survivals)
    per_row_s = cost.per_row_s
    seconds = cost.predict(num_sequences, num_rows)
    expected = float(len(survivals))  # each session gets one token whatever happens
    offers = [(chance, i) for i, chances in enumerate(survivals) for chance in chances]
    # Chances fall along a session's path, so by size they also come in the order of its path.
    offers.sort(key=_chance, reverse=True)
    for chance, index in offers[:max_rows]:
        if chance * seconds < expected * per_row_s:
            break  # this row would lower tokens per second, and so would all after it
        expected += chance
        seconds += per_row_s
        lengths[index] += 1
    return lengths


def predicted_gain(survival: Sequence[float], *, num_streams: int, cost: RoundCost) -> float:
    """The best that guesses could do for `num_streams` like sessions: speed relative to plain.

    Optimistic: as if drafting itself cost nothing and guesses were always there.
    """
    plain = best = 1.0 / cost.predict(num_streams, num_streams)
    expected = 1.0
    for num_drafts, chance in enumerate(survival, 1):
        expected += chance
        best = max(best, expected / cost.predict(num_streams, num_streams * (1 + num_drafts)))
    return best / plain


def _chance(offer: tuple[float, int]) -> float:
    return offer[0]
