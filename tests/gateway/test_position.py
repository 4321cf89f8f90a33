from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.position import END, Position, Step, parse_cursor
from shared.common.errors import ClientError
from shared.protocol.records import Failed, Finished, FinishReason, Record, Tokens
from tests.gateway.scripted import done, story


def at(*lengths: int, finished: tuple[int, ...] = ()) -> Position:
    """A position with these lengths."""
    position = Position(len(lengths))
    position.lengths = list(lengths)
    for choice in finished:
        position.has_finished[choice] = True
    return position


@pytest.mark.parametrize(
    ("position", "record", "expected"),
    [
        pytest.param(at(0), Tokens(0, 0, (1,), "a"), Step.NEXT, id="first"),
        pytest.param(at(2), Tokens(0, 2, (1, 2), "a"), Step.NEXT, id="dense"),
        pytest.param(at(2), Tokens(0, 0, (1, 2), "a"), Step.STALE, id="known"),
        pytest.param(at(2), Tokens(0, 3, (1,), "a"), Step.UNPROVEN, id="gap"),
        pytest.param(at(2), Tokens(0, 1, (1, 2), "a"), Step.DIVERGED, id="overlap"),
        pytest.param(at(2), Tokens(1, 0, (1,), "a"), Step.DIVERGED, id="no-such-choice"),
        pytest.param(at(2, 0), Tokens(1, 0, (1,), "a"), Step.NEXT, id="other-choice"),
        pytest.param(at(2), Finished(0, "", FinishReason.STOP), Step.UNPROVEN, id="finished"),
        pytest.param(
            at(2, finished=(0,)),
            Finished(0, "", FinishReason.STOP),
            Step.STALE,
            id="finished-twice",
        ),
        pytest.param(at(2), done(2), Step.NEXT, id="done-complete"),
        pytest.param(at(2), done(3), Step.UNPROVEN, id="done-tokens-missing"),
        pytest.param(
            at(1, 1), done(2, num_choices=2), Step.UNPROVEN, id="done-other-choice-unfinished"
        ),
        pytest.param(
            at(1, 1, finished=(1,)), done(2, num_choices=2), Step.NEXT, id="done-all-finished"
        ),
        pytest.param(at(2), Failed("x", "y"), Step.UNPROVEN, id="failed"),
    ],
)
def test_an_entry_is_believed_as_far_as_offsets_prove_it(
    position: Position, record: Record, expected: Step
) -> None:
    """A feed may lose and repeat; a position tells which entry is next without asking anybody."""
    assert position.step(record) is expected


def test_nothing_comes_after_the_end() -> None:
    """After a terminal record everything is old."""
    position = at(1)
    position.advance(Failed("x", "y"))
    assert position.step(Tokens(0, 1, (1,), "a")) is Step.STALE


@pytest.mark.parametrize("num_choices", [1, 2, 3])
def test_a_cursor_says_where_a_position_is(num_choices: int) -> None:
    """What is written as a frame's id is read back as the same position."""
    position = Position(num_choices)
    for record in story(num_choices)[:-1]:
        position.advance(record)
        found = parse_cursor(position.cursor, num_choices)
        assert (found.lengths, found.has_finished) == (position.lengths, position.has_finished)


def test_the_end_has_a_cursor_of_its_own() -> None:
    """After the last frame nothing is left to send."""
    assert parse_cursor(END, 2).is_over


@pytest.mark.parametrize(
    ("text", "num_choices"),
    [
        ("1,2", 1),
        ("1", 2),
        ("-1", 1),
        ("x", 1),
        ("1F", 1),
        ("٣", 1),
        ("9" * 10, 1),
        ("", 1),
        (",", 2),
    ],
    ids=["too-many", "too-few", "negative", "word", "case", "digits", "long", "empty", "commas"],
)
def test_a_bad_cursor_is_refused(text: str, num_choices: int) -> None:
    """A cursor that no frame carried is the client's error."""
    with pytest.raises(ClientError) as caught:
        parse_cursor(text, num_choices)
    assert caught.value.code == "invalid_cursor"


@given(st.text(max_size=20), st.integers(1, 8))
def test_any_text_is_a_cursor_or_an_error(text: str, num_choices: int) -> None:
    """Nothing else comes out of a header a client may write."""
    with suppress(ClientError):
        parse_cursor(text, num_choices)
