"""Outcomes: what several rounds say, put together in order."""

from shared.bus.jobs import Claim
from shared.protocol.messages import DraftClosed, Verdict
from shared.protocol.records import Tokens
from target_worker.outcome import Outcome


def claim(job_id: str, epoch: int = 1) -> Claim:
    return Claim(job_id, "jobs", "1-0", epoch, 7, is_cancelled=False, deliveries=1, lengths=())


def test_records_of_a_job_stay_together_and_in_order() -> None:
    """Two rounds of one job and one of another; another epoch is another claim."""
    first, later = Outcome(), Outcome()
    first.append(claim("a"), [Tokens(0, 0, (1,), "")])
    later.append(claim("a"), [Tokens(0, 1, (2,), "")])
    later.append(claim("b"), [])
    later.append(claim("a", 2), [Tokens(0, 2, (3,), "")])
    first.merge(later)
    assert [(key, len(records)) for key, (_, records) in first.records.items()] == [
        (("a", 1), 2),
        (("b", 1), 0),
        (("a", 2), 1),
    ]


def test_mail_is_one_list_a_drafter() -> None:
    """Coalesced over sessions and rounds, never reordered."""
    first, later = Outcome(), Outcome()
    assert not first
    first.send("draft:a", Verdict("s", 1, (2,)))
    later.send("draft:a", DraftClosed("s"))
    later.send("draft:b", DraftClosed("t"))
    first.merge(later)
    assert first.mail == {
        "draft:a": [Verdict("s", 1, (2,)), DraftClosed("s")],
        "draft:b": [DraftClosed("t")],
    }
    assert first
