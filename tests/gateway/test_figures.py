import pytest

from gateway.figures import metrics, speculative_decoding
from gateway.transcript import Times
from shared.protocol.records import SpeculationStats, Tokens
from tests.gateway.scripted import done


def stats(
    num_rounds: int, num_draft: int, num_accepted: int, per_position: tuple[int, ...]
) -> SpeculationStats:
    """Counts of one job."""
    return SpeculationStats(
        num_rounds=num_rounds,
        num_draft_tokens=num_draft,
        num_accepted_tokens=num_accepted,
        accepted_per_position=per_position,
    )


def times(*moments_ms: int) -> Times:
    """Token entries at these moments."""
    found = Times()
    for moment_ms in moments_ms:
        found.add((f"{moment_ms}-0", Tokens(0, 0, (1,), "")))
    return found


@pytest.mark.parametrize(
    ("counts", "histogram"),
    [
        pytest.param(SpeculationStats(), (0,), id="nothing-drafted"),
        pytest.param(stats(4, 12, 6, (3, 2, 1)), (1, 1, 1, 1), id="mixed"),
        pytest.param(stats(5, 10, 0, (0, 0)), (5, 0, 0), id="none-accepted"),
        pytest.param(stats(5, 10, 10, (5, 5)), (0, 0, 5), id="all-accepted"),
    ],
)
def test_the_histogram_counts_rounds_by_how_much_they_accepted(
    counts: SpeculationStats, histogram: tuple[int, ...]
) -> None:
    """K + 1 whole numbers that add up to the rounds and, weighted, to the accepted tokens."""
    found = speculative_decoding(counts)
    assert found.acceptance_histogram == histogram
    assert sum(histogram) == counts.num_rounds
    assert sum(i * count for i, count in enumerate(histogram)) == counts.num_accepted_tokens
    assert len(histogram) == found.num_spec_tokens + 1


def test_times_come_from_the_log() -> None:
    """Time to first token from the submission, pace from the first token on."""
    found = metrics(done(11), times(1_050, 1_250), 1_000)
    assert (found.time_to_first_token_ms, found.generation_time_ms, found.duration_ms) == (
        50,
        200,
        250,
    )
    assert (found.mean_itl_ms, found.tokens_per_second) == (20.0, 55.0)


def test_clocks_that_differ_give_no_negative_times() -> None:
    """The gateway's clock may be ahead of the server's."""
    assert metrics(done(1), times(900, 950), 1_000).time_to_first_token_ms == 0


def test_an_unknown_submission_leaves_its_times_out() -> None:
    """A job that no gateway submitted has no known start."""
    found = metrics(done(1), times(900), 0)
    assert (found.time_to_first_token_ms, found.duration_ms) == (None, None)
    assert (found.mean_itl_ms, found.tokens_per_second) == (None, None)
