"""draft_worker/loop.py: the drafting thread."""

import queue
from collections.abc import Iterator, Sequence

import pytest

from draft_worker.drafter import Proposal
from draft_worker.loop import DraftLoop
from draft_worker.ngram_drafter import NgramDrafter
from draft_worker.service import DraftService, Mail
from shared.common.clock import SystemClock
from shared.protocol.messages import DraftAccepted, DraftClosed, DraftPath
from tests.draft_worker.builders import EAGER, make_request

WAIT_S = 10.0
REQUEST = make_request(token_ids=(1, 2, 3, 1, 2))


class BrokenDrafter(NgramDrafter):
    """Fails at its first step."""

    def step(self) -> Sequence[Proposal]:
        raise RuntimeError("broken on purpose")


class Harness:
    """A loop whose mail lands in a queue."""

    def __init__(self, drafter: NgramDrafter) -> None:
        self.mail: queue.Queue[Mail] = queue.Queue()
        service = DraftService(
            drafter, draft_id="draft:d", clock=SystemClock(), session_timeout_s=30.0
        )
        self.loop = DraftLoop(service, emit=self.mail.put, clock=SystemClock())
        self.loop.start()


@pytest.fixture
def harness() -> Iterator[Harness]:
    harness = Harness(NgramDrafter(limits=EAGER))
    yield harness
    harness.loop.stop(WAIT_S)


def test_a_request_wakes_the_thread(harness: Harness) -> None:
    """Accepted first, then guesses, without any polling by the caller."""
    harness.loop.post(REQUEST)
    assert harness.mail.get(timeout=WAIT_S) == {"target:a": [DraftAccepted("job/0", "draft:d")]}
    (path,) = harness.mail.get(timeout=WAIT_S)["target:a"]
    assert isinstance(path, DraftPath)
    assert harness.loop.num_free == EAGER.max_num_seqs - 1


def test_stopping_tells_the_targets_and_ends_the_thread(harness: Harness) -> None:
    """The last mail closes every session."""
    harness.loop.post(REQUEST)
    harness.loop.stop(WAIT_S)
    assert not harness.loop.is_alive
    *_, last = list(harness.mail.queue)
    assert last == {"target:a": [DraftClosed("job/0")]}


def test_an_idle_thread_shows_progress(harness: Harness) -> None:
    """No work is not a hang."""
    with pytest.raises(queue.Empty):
        harness.mail.get(timeout=1.0)
    assert harness.loop.is_alive
    assert harness.loop.stalled_s < 1.0


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_failure_ends_the_thread_and_is_kept() -> None:
    """Whoever watches the loop sees that it is over, and why."""
    harness = Harness(BrokenDrafter(limits=EAGER))
    harness.loop.post(REQUEST)
    harness.loop.stop(WAIT_S)
    assert not harness.loop.is_alive
    assert isinstance(harness.loop.error, RuntimeError)
