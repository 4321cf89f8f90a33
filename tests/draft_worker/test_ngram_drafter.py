"""draft_worker/ngram_drafter.py: prompt lookup behind the drafter's interface."""

from draft_worker.limits import DraftLimits
from draft_worker.ngram_drafter import NgramDrafter
from shared.protocol.messages import DraftPath
from tests.draft_worker.builders import make_request, make_verdict

REPEAT = (1, 2, 3, 4, 5, 6, 7, 8, 1, 2)


def make_drafter(**limits: int) -> NgramDrafter:
    return NgramDrafter(limits=DraftLimits(**{"max_ahead": 4} | limits))


def test_a_repeating_prompt_gets_a_guess_at_once() -> None:
    """What followed before is proposed after the first step."""
    drafter = make_drafter()
    assert drafter.open(make_request(token_ids=REPEAT))
    assert drafter.step() == [DraftPath("job/0", 10, (3, 4, 5, 6))]
    assert not drafter.has_work


def test_a_confirmed_guess_is_followed_by_the_next() -> None:
    """When half of what was sent is used up, more is sent."""
    drafter = make_drafter()
    drafter.open(make_request(token_ids=REPEAT))
    drafter.step()
    assert drafter.confirm(make_verdict(10, 3))
    assert drafter.step() == []
    assert drafter.confirm(make_verdict(11, 4))
    assert drafter.step() == [DraftPath("job/0", 12, (5, 6, 7, 8))]


def test_a_correction_drops_the_guess() -> None:
    """After another token nothing repeats, so nothing is said."""
    drafter = make_drafter()
    drafter.open(make_request(token_ids=REPEAT))
    drafter.step()
    assert drafter.confirm(make_verdict(10, 40))
    assert drafter.step() == []


def test_sessions_do_not_see_each_other() -> None:
    """What one session repeats is no guess for another."""
    drafter = make_drafter()
    drafter.open(make_request("a/0", token_ids=(1, 2, 3, 4, 5)))
    drafter.open(make_request("b/0", token_ids=(9, 9, 1, 2)))
    assert [path for path in drafter.step() if path.session_id == "b/0"] == []


def test_guesses_end_at_the_length_limit() -> None:
    """No guess goes beyond max_len."""
    drafter = make_drafter()
    drafter.open(make_request(token_ids=REPEAT, max_len=12))
    assert drafter.step() == [DraftPath("job/0", 10, (3, 4))]


def test_a_lost_verdict_is_reported_and_an_old_one_is_not() -> None:
    """A gap cannot be bridged; a duplicate changes nothing."""
    drafter = make_drafter()
    drafter.open(make_request(token_ids=REPEAT))
    assert not drafter.confirm(make_verdict(11, 4))
    assert drafter.confirm(make_verdict(9, 2))


def test_sessions_are_bounded() -> None:
    """A full drafter refuses, and takes the next one when a session closes."""
    drafter = make_drafter(max_num_seqs=1)
    assert drafter.open(make_request("a/0"))
    assert not drafter.open(make_request("b/0"))
    drafter.close("a/0")
    assert drafter.open(make_request("b/0"))
    assert drafter.usage == 1.0
