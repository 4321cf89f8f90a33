import asyncio
import io
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from stack.chat import Figures
from stack.terminal import Lines, Terminal, Wrapper, closing_line


def wrapped(pieces: Sequence[str], width: int | None) -> str:
    wrapper = Wrapper(width)
    return "".join(map(wrapper.feed, pieces)) + wrapper.flush()


@pytest.mark.parametrize(
    ("pieces", "width", "expected"),
    [
        (["one two three"], 7, "one two\nthree"),
        (["on", "e t", "wo th", "ree"], 7, "one two\nthree"),
        (["one\n\ntwo"], 80, "one\n\ntwo"),
        (["extraordinarily long"], 5, "extraordinarily\nlong"),
        (["a  b"], 80, "a  b"),
        (["one two three four"], None, "one two three four"),
        (["red \x1b[31m\x07"], 80, "red \ufffd[31m\ufffd"),
    ],
    ids=["wraps", "any-cut", "paragraphs", "long-word", "spaces", "no-width", "control"],
)  # fmt: skip
def test_text_breaks_between_words(pieces: list[str], width: int | None, expected: str) -> None:
    """However the stream is cut; and no text of a model controls the terminal."""
    assert wrapped(pieces, width) == expected


def test_a_word_is_shown_when_it_is_complete() -> None:
    """Nothing that was shown has to move to the next line."""
    wrapper = Wrapper(10)
    assert (wrapper.feed("Once up"), wrapper.feed("on"), wrapper.flush()) == ("Once", "", " upon")


@pytest.mark.parametrize("has_colour", [False, True])
def test_remarks_are_dim_only_on_a_terminal(*, has_colour: bool) -> None:
    """A file gets no escape sequences."""
    out, notes = io.StringIO(), io.StringIO()
    terminal = Terminal(out, notes, has_colour=has_colour)
    terminal.text("Once")
    terminal.end_text()
    terminal.remark("3 tokens")
    terminal.complaint("error")
    assert out.getvalue() == "Once\n"
    assert ("\x1b" in notes.getvalue()) is has_colour


@pytest.mark.parametrize(
    ("figures", "line"),
    [
        (
            Figures(187, 312.4, 0.741, 3.96),
            "187 tokens · 312 tokens/s · acceptance rate 0.74 · mean acceptance length 3.96",
        ),
        (Figures(1, None, None, None), "1 tokens · no drafts"),
    ],
)
def test_the_closing_line_has_the_figures(figures: Figures, line: str) -> None:
    """What is not known is left out."""
    assert closing_line(figures) == line


async def test_lines_come_from_a_pipe_as_they_are_typed() -> None:
    """The last one counts without its end; then there are no more."""
    reader, writer = os.pipe()
    lines = Lines(reader)
    os.write(writer, b"first\nsec")
    assert await lines.next() == "first"
    waiting = asyncio.ensure_future(lines.next())
    await asyncio.sleep(0)
    os.write(writer, b"ond\nlast")
    assert await waiting == "second"
    os.close(writer)
    assert [await lines.next(), await lines.next()] == ["last", None]
    os.close(reader)


async def test_lines_come_from_a_file(tmp_path: Path) -> None:
    """`make demo < questions.txt` works."""
    (tmp_path / "in").write_bytes(b"one\n\ntwo")
    descriptor = os.open(tmp_path / "in", os.O_RDONLY)
    lines = Lines(descriptor)
    assert [await lines.next() for _ in range(4)] == ["one", "", "two", None]
    os.close(descriptor)
