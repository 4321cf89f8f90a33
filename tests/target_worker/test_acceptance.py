"""Estimates of how likely guesses are right."""

import pytest

from target_worker.acceptance import Acceptance


def test_without_evidence_the_prior_counts() -> None:
    """A worker that has seen nothing expects something in the middle, falling with position."""
    survival = Acceptance().survival(4)
    assert survival == pytest.approx([0.65, 0.65**2, 0.65**3, 0.65**4])


@pytest.mark.parametrize(("accepted", "low", "high"), [(4, 0.9, 1.0), (0, 0.0, 0.12)])
def test_evidence_outweighs_the_prior(accepted: int, low: float, high: float) -> None:
    """After a hundred rounds the first position's rate is what was seen."""
    acceptance = Acceptance()
    for _ in range(100):
        acceptance.observe(4, accepted)
    assert low <= acceptance.rates(1)[0] <= high


def test_positions_behind_a_wrong_guess_are_not_judged() -> None:
    """What follows a mismatch was never looked at."""
    acceptance = Acceptance()
    acceptance.observe(4, 1)
    right, wrong, unseen = acceptance.rates(3)
    assert right > 0.65 > wrong
    assert unseen == pytest.approx(0.65)


def test_a_session_starts_from_what_its_worker_sees() -> None:
    """And teaches the worker in turn; `forget` goes back to the worker's view."""
    worker = Acceptance()
    for _ in range(100):
        Acceptance(worker).observe(2, 2)
    session = Acceptance(worker)
    assert session.rates(1)[0] > 0.9
    for _ in range(100):
        session.observe(1, 0)
    assert session.rates(1)[0] < 0.1
    session.forget()
    assert session.rates(1) == worker.rates(1)


def test_survival_is_no_longer_than_what_is_kept() -> None:
    """Asking for more positions than drafts may have gives those there are."""
    assert len(Acceptance(Acceptance()).survival(100)) == 16
