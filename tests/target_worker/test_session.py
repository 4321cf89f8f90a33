"""A session: where it ends, and what counts until then."""

import pytest

from shared.protocol.records import FinishReason
from shared.protocol.sampling import SamplingParams
from target_worker.session import Session
from tests.target_worker.engines import LetterText


def make_session(max_len: int = 10, *, stop_ids: tuple[int, ...] = (), stop: str = "") -> Session:
    return Session(
        "job/0",
        (1, 2),
        prompt_len=2,
        max_len=max_len,
        params=SamplingParams(seed=1, stop_token_ids=stop_ids),
        text=LetterText([stop] if stop else []),
        vocab_size=50,
    )


ENDS = {
    "none": (make_session(), [4, 5, 6], None),
    "length": (make_session(max_len=5), [4, 5, 6], FinishReason.LENGTH),
    "length-inside": (make_session(max_len=4), [4, 5], FinishReason.LENGTH),
    "stop-id": (make_session(stop_ids=(5,)), [4, 5], FinishReason.STOP),
    "stop-id-is-last-place": (make_session(max_len=4, stop_ids=(5,)), [4, 5], FinishReason.STOP),
    "stop-string": (make_session(stop="ef"), [4, 5], FinishReason.STOP),
}


@pytest.mark.parametrize(("session", "kept", "reason"), ENDS.values(), ids=ENDS)
def test_what_follows_the_end_is_discarded(
    session: Session, kept: list[int], reason: FinishReason | None
) -> None:
    """Of three confirmed tokens those up to the end count, and their text."""
    assert session.accept([4, 5, 6]) == kept
    assert session.text_of(kept) == "".join(chr(ord("a") + t) for t in kept)
    assert session.text_of([]) == ""
    assert session.token_ids == [1, 2, *kept]
    assert session.num_output == len(kept)
    assert session.reason is reason


def test_guesses_follow_what_is_confirmed() -> None:
    """The tree walks along; at the end it is empty."""
    session = make_session()
    session.tree.insert(2, (4, 5, 6))
    session.accept([4])
    assert session.tree.best_path(9) == [5, 6]
    session.end()
    assert not session.tree


def test_a_new_session_has_everything_to_compute() -> None:
    """Without a place in the cache it does not decode, and others wait for its prompt."""
    session = make_session()
    assert not session.is_decoding
    assert not session.is_prompt_computed
    session.suspend()
    assert session.num_computed == 0
