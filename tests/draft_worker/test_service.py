"""draft_worker/service.py: addressing, epochs, and sessions whose targets are gone."""

import msgspec
import pytest

from draft_worker.ngram_drafter import NgramDrafter
from draft_worker.service import DraftService
from shared.protocol.messages import (
    CancelNotice,
    DraftAccepted,
    DraftClosed,
    DraftPath,
    DraftRequest,
)
from tests.draft_worker.builders import EAGER, make_request, make_verdict
from tests.fakes import ManualClock

REPEAT = (1, 2, 3, 4, 5, 6, 1, 2)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def service(clock: ManualClock) -> DraftService:
    return DraftService(
        NgramDrafter(limits=EAGER), draft_id="draft:d", clock=clock, session_timeout_s=30.0
    )


def request(session_id: str = "job/0", **changes: object) -> DraftRequest:
    return msgspec.structs.replace(make_request(session_id, token_ids=REPEAT), **changes)


def test_a_request_is_accepted_before_anything_is_computed(service: DraftService) -> None:
    """The target learns at once where its verdicts should go; guesses come with the next step."""
    assert service.handle([request()]) == {"target:a": [DraftAccepted("job/0", "draft:d")]}
    (path,) = service.step()["target:a"]
    assert isinstance(path, DraftPath)
    assert service.num_sessions == 1


def test_mail_is_gathered_per_target(service: DraftService) -> None:
    """One message to each target, whatever the number of its sessions."""
    service.handle([request("a/0"), request("b/0"), request("c/0", target_id="target:b")])
    mail = service.step()
    assert {name: len(messages) for name, messages in mail.items()} == {
        "target:a": 2,
        "target:b": 1,
    }


def test_a_request_that_cannot_be_served_is_not_answered(service: DraftService) -> None:
    """Silence lets the target ask again, perhaps somebody else."""
    assert service.handle([request(max_len=2)]) == {}
    assert service.num_sessions == 0


def test_a_newer_owner_takes_the_session_over(service: DraftService) -> None:
    """Guesses go to the target that asked last; the one it replaced is not heard any more."""
    service.handle([request()])
    answer = service.handle([request(epoch=2, target_id="target:b")])
    assert answer == {"target:b": [DraftAccepted("job/0", "draft:d")]}
    assert service.handle([request(epoch=1)]) == {}
    assert list(service.step()) == ["target:b"]


def test_a_lost_verdict_closes_the_session_so_that_the_target_asks_again(
    service: DraftService,
) -> None:
    """The drafter cannot guess across a gap; one message says so, later ones are ignored."""
    service.handle([request()])
    late = make_verdict(len(REPEAT) + 1, 7)
    assert service.handle([late]) == {"target:a": [DraftClosed("job/0")]}
    assert service.handle([late]) == {}
    assert service.handle([request()]) == {"target:a": [DraftAccepted("job/0", "draft:d")]}


def test_a_verdict_twice_is_no_error(service: DraftService) -> None:
    """Redelivery changes nothing."""
    service.handle([request()])
    verdict = make_verdict(len(REPEAT), 3)
    assert service.handle([verdict, verdict]) == {}
    assert service.num_sessions == 1


def test_a_closed_session_is_forgotten(service: DraftService) -> None:
    """Nothing more is said about it."""
    service.handle([request(), DraftClosed("job/0"), DraftClosed("unknown/0")])
    assert service.step() == {}
    assert service.num_sessions == 0


def test_other_messages_are_ignored(service: DraftService) -> None:
    """Whoever sends what is not for drafters harms nobody."""
    assert service.handle([CancelNotice("job"), DraftPath("job/0", 0, (1,))]) == {}


def test_a_session_without_news_is_dropped(service: DraftService, clock: ManualClock) -> None:
    """Its target has probably died; if not, it is told. Sessions with news stay."""
    service.handle([request("a/0"), request("b/0")])
    clock.advance(20.0)
    service.handle([make_verdict(len(REPEAT), 3, session_id="b/0")])
    clock.advance(20.0)
    assert service.drop_silent() == {"target:a": [DraftClosed("a/0")]}
    assert service.num_sessions == 1


def test_leaving_closes_every_session(service: DraftService) -> None:
    """Each target is told of its own."""
    service.handle([request("a/0"), request("b/0", target_id="target:b")])
    assert service.close_all() == {
        "target:a": [DraftClosed("a/0")],
        "target:b": [DraftClosed("b/0")],
    }
    assert service.usage == 0.0
