import msgspec
import pytest

from gateway.job import RESERVED_KEY, Origin, make_job, new_id, read_job
from shared.common.errors import ClientError, PeerError
from shared.protocol.limits import MAX_BODY_BYTES
from shared.protocol.requests import parse_request

BODY = b'{"model":"m","messages":[{"role":"user","content":"hi"}],"metadata":{"a":"b"}}'
ORIGIN = Origin(created_ms=1_700_000_000_123, previous_response_id="resp_1", has_instructions=True)


def test_another_gateway_reads_what_the_first_one_knew() -> None:
    """The origin travels inside the stored body."""
    job = make_job("resp_2", BODY, ORIGIN)
    again = read_job("resp_2", job.body)
    assert again == job
    assert (again.origin, again.created_s) == (ORIGIN, 1_700_000_000)


def test_a_stored_body_is_what_a_worker_accepts() -> None:
    """What the gateway adds is an ordinary metadata entry."""
    stored = make_job("resp_2", BODY, ORIGIN).body
    assert parse_request(stored).messages == parse_request(BODY).messages


def test_the_clients_metadata_does_not_show_the_origin() -> None:
    """Clients get back what they sent."""
    assert make_job("resp_2", BODY, ORIGIN).metadata == {"a": "b"}


def test_the_reserved_metadata_key_is_refused() -> None:
    """Nobody can pretend to be a gateway."""
    body = msgspec.json.encode(
        msgspec.json.decode(BODY) | {"metadata": {RESERVED_KEY: '{"created_ms":1}'}}
    )
    with pytest.raises(ClientError) as caught:
        make_job("resp_2", body, ORIGIN)
    assert caught.value.param == "metadata"


def test_two_requests_are_told_apart_by_what_they_ask() -> None:
    """The time of submission does not make a request another one; its content does."""
    job = make_job("a", BODY, ORIGIN)
    assert job.asks == make_job("a", BODY, Origin(created_ms=5)).asks
    assert job.asks != make_job("a", BODY.replace(b"hi", b"ho"), ORIGIN).asks


def test_a_job_that_no_gateway_submitted_can_be_read() -> None:
    """Anybody may XADD a body; it has no origin."""
    assert read_job("1-1", BODY).origin == Origin()


@pytest.mark.parametrize(
    "body",
    [b"", b"{}", b"\xff", BODY.replace(b'"a":"b"', b'"outrider":"{"')],
    ids=["empty", "incomplete", "bytes", "broken-origin"],
)
def test_an_unreadable_body_is_somebody_elses_fault(body: bytes) -> None:
    """A body that no worker could have accepted is no answer to anything."""
    with pytest.raises(PeerError):
        read_job("1-1", body)


def test_a_body_that_only_just_fits_is_refused_once_the_origin_is_in() -> None:
    """Workers would refuse it later."""
    head, tail = b'{"model":"m","messages":[{"role":"user","content":"', b'"}]}'
    body = head + b"x" * (MAX_BODY_BYTES - len(head) - len(tail)) + tail
    with pytest.raises(ClientError) as caught:
        make_job("a", body, ORIGIN)
    assert caught.value.status == 413


def test_ids_cannot_be_guessed() -> None:
    """128 random bits."""
    assert len({new_id("resp_") for _ in range(100)}) == 100
    assert len(new_id("")) == 32
