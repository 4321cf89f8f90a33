"""Names of keys."""

from shared.protocol.keys import Keys, Priority


def test_a_jobs_keys_share_a_hash_tag() -> None:
    """So they live in one slot."""
    keys = Keys()
    assert (keys.job("a-1"), keys.log("a-1")) == ("outrider:{a-1}:job", "outrider:{a-1}:out")


def test_streams_by_priority() -> None:
    """Most urgent first; the normal one has no suffix."""
    assert Keys().all_jobs == ("outrider:jobs:high", "outrider:jobs", "outrider:jobs:low")
    assert Keys().jobs(Priority.HIGH) == Keys().all_jobs[0]


def test_two_prefixes_share_nothing() -> None:
    """Several systems may use one server."""

    def names(keys: Keys) -> set[str]:
        single = {keys.drafts, keys.dead, keys.workers, keys.inbox("t:a"), keys.heartbeat("t:a")}
        return single | {*keys.all_jobs, keys.job("j"), keys.log("j")}

    assert len(names(Keys())) == 10
    assert not names(Keys("a:")) & names(Keys("b:"))
