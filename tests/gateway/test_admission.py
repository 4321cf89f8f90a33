import pytest

from gateway.admission import Admission
from shared.common.errors import Unavailable


def test_more_answers_than_allowed_are_the_clients_fault() -> None:
    """429 with a time to come back, and room again afterwards."""
    admission = Admission(max_streams=1, max_waiting=9)
    with admission.stream(), pytest.raises(Unavailable) as caught, admission.stream():
        pass
    assert (caught.value.status, caught.value.code) == (429, "too_many_streams")
    assert caught.value.retry_after_s >= 1
    with admission.stream():
        assert admission.num_streams == 1


def test_too_many_waiting_is_the_services_fault() -> None:
    """503; whoever has begun waits no longer."""
    admission = Admission(max_streams=9, max_waiting=1)
    with admission.stream() as ticket:
        with pytest.raises(Unavailable) as caught, admission.stream():
            pass
        assert (caught.value.status, caught.value.code) == (503, "too_many_waiting")
        ticket.begin()
        ticket.begin()
        with admission.stream():
            assert (admission.num_streams, admission.num_waiting) == (2, 1)
    assert (admission.num_streams, admission.num_waiting) == (0, 0)


def test_what_waits_at_the_workers_counts_too() -> None:
    """Other gateways fill the same queue."""
    admission = Admission(max_streams=9, max_waiting=5)
    with pytest.raises(Unavailable), admission.stream(num_waiting_elsewhere=5):
        pass
    assert admission.rejections["too_many_waiting"] == 1


async def test_a_drain_takes_nothing_new_and_ends_when_all_is_answered() -> None:
    """What was taken on is finished."""
    admission = Admission(max_streams=9, max_waiting=9)
    with admission.stream():
        admission.is_draining = True
        with pytest.raises(Unavailable), admission.stream():
            pass
        with pytest.raises(Unavailable), admission.socket():
            pass
    await admission.idle()


def test_sockets_are_counted_and_bounded() -> None:
    """A connection costs memory even when it is silent."""
    admission = Admission(max_streams=1, max_waiting=9)
    with admission.socket(), pytest.raises(Unavailable) as caught, admission.socket():
        pass
    assert caught.value.code == "too_many_sockets"
    assert admission.num_sockets == 0
