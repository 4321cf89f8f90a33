"""When jobs expire."""

from target_worker.deadlines import Deadlines


def test_jobs_are_due_at_their_time_and_until_they_end() -> None:
    """Not before, in any order of coming, and not once they are over."""
    deadlines = Deadlines()
    for job_id, deadline_ms in (("late", 300), ("early", 100), ("never", None), ("over", 100)):
        deadlines.add(job_id, deadline_ms)
    deadlines.discard("over")
    deadlines.discard("unknown")
    assert deadlines.due(99) == []
    assert deadlines.due(100) == ["early"]
    deadlines.discard("early")
    assert deadlines.due(299) == []
    assert deadlines.due(1_000) == ["late"]


def test_a_job_that_comes_again_has_its_new_deadline() -> None:
    """A takeover: the old claim's is forgotten with it."""
    deadlines = Deadlines()
    deadlines.add("job", 100)
    deadlines.discard("job")
    deadlines.add("job", 200)
    assert deadlines.due(150) == []
    assert deadlines.due(200) == ["job"]
    deadlines.discard("job")
    deadlines.add("job", None)
    assert deadlines.due(10_000) == []
