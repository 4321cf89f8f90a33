"""What a person sees and types: wrapped text, dim remarks, lines of input. Plain when not a TTY."""

import asyncio
import os
import shutil
import sys
from typing import TextIO

from stack.chat import Figures

MAX_WIDTH = 88  # columns; longer lines are hard to read
_DIM, _RED, _PLAIN = "\x1b[2m", "\x1b[31m", "\x1b[0m"


class Wrapper:
    """Breaks a stream of text between words. Pure: text in, text out.

    Args:
        width: columns; None lets lines be as long as they are.
    """

    def __init__(self, width: int | None) -> None:
        self._width = width
        self._column = 0
        self._space = ""
        self._word = ""

    def feed(self, text: str) -> str:
        """What can be shown now; a word that may go on is held back."""
        return "".join(map(self._add, text))

    def flush(self) -> str:
        """The word that was held back."""
        return self._end_word()

    def _add(self, char: str) -> str:
        if char == "\n":
            shown = self._end_word() + "\n"
            self._column, self._space = 0, ""
            return shown
        if char.isspace():
            shown = self._end_word()
            self._space += " "
            return shown
        # Control characters could do anything to a terminal.
        self._word += char if char.isprintable() else "\N{REPLACEMENT CHARACTER}"
        return ""

    def _end_word(self) -> str:
        word, space = self._word, self._space
        if not word:
            return ""
        self._word = self._space = ""
        needed = self._column + len(space) + len(word)
        if self._width is not None and self._column and needed > self._width:
            self._column = len(word)
            return "\n" + word
        self._column = needed
        return space + word


class Terminal:
    """Writes text to `out` and remarks to `notes`.

    Args:
        out: where answers go.
        notes: where everything else goes.
        width: columns, or None for text that is not to be wrapped.
        has_colour: whether remarks are dim and errors red.
    """

    def __init__(
        self, out: TextIO, notes: TextIO, *, width: int | None = None, has_colour: bool = False
    ) -> None:
        self._out = out
        self._notes = notes
        self._width = width
        self._has_colour = has_colour
        self._wrapper = Wrapper(width)

    @classmethod
    def of_process(cls) -> "Terminal":
        """The process's own standard streams."""
        is_tty = sys.stdout.isatty()
        width = None
        if is_tty:
            width = max(20, min(MAX_WIDTH, shutil.get_terminal_size().columns - 1))
        has_colour = is_tty and sys.stderr.isatty() and not os.environ.get("NO_COLOR")
        return cls(sys.stdout, sys.stderr, width=width, has_colour=has_colour)

    def text(self, text: str) -> None:
        """A piece of an answer."""
        self._write(self._wrapper.feed(text))

    def end_text(self) -> None:
        """The answer is over, complete or not."""
        self._write(self._wrapper.flush() + "\n")
        self._wrapper = Wrapper(self._width)

    def remark(self, line: str) -> None:
        """A line beside the answers."""
        self._note(line, _DIM)

    def complaint(self, line: str) -> None:
        """A line about something that failed."""
        self._note(line, _RED)

    def prompt(self) -> None:
        """Where the next line is typed."""
        self._write("\n> ")

    def _note(self, line: str, colour: str) -> None:
        shown = f"{colour}{line}{_PLAIN}" if self._has_colour else line
        self._notes.write(shown + "\n")
        self._notes.flush()

    def _write(self, text: str) -> None:
        self._out.write(text)
        self._out.flush()


def closing_line(figures: Figures) -> str:
    """The figures of an answer on one line."""
    parts = [f"{figures.num_tokens} tokens"]
    if figures.tokens_per_second is not None:
        parts.append(f"{figures.tokens_per_second:.0f} tokens/s")
    if figures.acceptance_rate is None or figures.mean_acceptance_length is None:
        parts.append("no drafts")
    else:
        parts.append(f"acceptance rate {figures.acceptance_rate:.2f}")
        parts.append(f"mean acceptance length {figures.mean_acceptance_length:.2f}")
    return " · ".join(parts)


class Lines:
    """Lines of a file descriptor, without blocking the loop. Cancelling loses nothing."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._buffer = b""
        self._is_over = False

    async def next(self) -> str | None:
        """The next line without its end, or None when there is no more."""
        while b"\n" not in self._buffer and not self._is_over:
            await self._readable()
            chunk = os.read(self._descriptor, 4_096)
            self._buffer += chunk
            self._is_over = not chunk
        if not self._buffer:
            return None
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line.decode(errors="replace")

    async def _readable(self) -> None:
        loop = asyncio.get_running_loop()
        ready = asyncio.Event()
        try:
            loop.add_reader(self._descriptor, ready.set)
        except PermissionError:  # a plain file, which never blocks
            return
        try:
            await ready.wait()
        finally:
            loop.remove_reader(self._descriptor)
