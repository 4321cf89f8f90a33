from collections.abc import Callable
from pathlib import Path

import pytest

from stack import output
from stack.output import Output, notable


@pytest.fixture
def make(tmp_path: Path) -> Callable[[], tuple[Output, list[str], Path]]:
    """An output with what it forwards, and its file."""

    def build() -> tuple[Output, list[str], Path]:
        lines: list[str] = []
        return Output(tmp_path / "target-0.log", lines.append), lines, tmp_path / "target-0.log"

    return build


Make = Callable[[], tuple[Output, list[str], Path]]


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ('{"event":"round_failed","level":"error","code":7,"role":"t"}', "round_failed code=7"),
        ('{"event":"stream_finished","level":"info"}', ""),
        ("target_worker: --model is 'x': must be a path", None),
        ("ValueError: boom", None),
        ("{broken", None),
        ("4711:M 22 Nov 2026 09:00:00.000 * Ready to accept connections tcp", ""),
        ("4711:M 22 Nov 2026 09:00:00.000 # Memory overcommit must be enabled", ""),
        ("", ""),
    ],
    ids=["error", "info", "complaint", "traceback", "not-json", "server", "server-warns", "empty"],
)
def test_what_matters_is_recognised(line: str, text: str | None) -> None:
    """Warnings, errors and whatever a program says while it dies; not its daily business."""
    assert notable(line + "\n") == (line if text is None else text)


def test_everything_goes_to_the_file_and_warnings_to_the_terminal(make: Make) -> None:
    """Lines are put together again however the pipe cuts them."""
    out, lines, path = make()
    for chunk in (b'{"level":"info"}\n{"event":"a","lev', b'el":"warning"}\n\n', b"last words"):
        out.feed(chunk)
    out.end_of_stream()
    out.close()
    assert lines == ["a", "last words"]
    assert out.last_words == "last words"
    assert path.read_bytes().endswith(b'"level":"warning"}\n\nlast words')


def test_a_log_of_an_earlier_run_is_kept_once(make: Make) -> None:
    """The run before this one can still be read."""
    for word in (b"first\n", b"second\n", b"third\n"):
        out, _, path = make()
        out.feed(word)
        out.close()
    assert path.read_bytes() == b"third\n"
    assert path.with_suffix(".log.1").read_bytes() == b"second\n"


def test_a_log_is_bounded(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that logs for months does not fill the disk."""
    monkeypatch.setattr(output, "MAX_LOG_BYTES", 100)
    out, _, path = make()
    for _ in range(50):
        out.feed(b"x" * 9 + b"\n")
    out.close()
    assert path.stat().st_size <= 100
    assert path.with_suffix(".log.1").stat().st_size <= 100


def test_an_endless_line_is_forwarded_in_pieces(make: Make) -> None:
    """Nothing is held in memory for ever."""
    out, lines, _ = make()
    out.feed(b"x" * (output.MAX_LINE_BYTES + 1))
    out.close()
    assert len(lines) == 1
