"""What a child writes: all of it to a bounded log file, what matters to the terminal as well."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO

import msgspec

MAX_LOG_BYTES = 16 << 20  # then the file becomes NAME.log.1 and a new one is begun
MAX_LINE_BYTES = 64 << 10  # a longer line is forwarded in pieces
_NOTABLE = frozenset({"warning", "error", "critical"})
_HIDDEN = frozenset({"event", "level", "timestamp", "role", "worker_id"})


class Output:
    """The log of one child, over all its restarts."""

    def __init__(self, path: Path, forward: Callable[[str], None]) -> None:
        self._path = path
        self._forward = forward
        self._partial = b""
        self._file = self._begin()
        self.last_notable = ""
        self.last_line = ""

    @property
    def last_words(self) -> str:
        """What a person should read first when the child has died."""
        return self.last_notable or self.last_line

    def feed(self, chunk: bytes) -> None:
        """Take what the child wrote just now."""
        if self._file.tell() + len(chunk) > MAX_LOG_BYTES:
            self._file.close()
            self._file = self._begin()
        self._file.write(chunk)
        self._file.flush()
        *lines, self._partial = (self._partial + chunk).split(b"\n")
        if len(self._partial) > MAX_LINE_BYTES:
            lines.append(self._partial)
            self._partial = b""
        for line in lines:
            self._judge(line)

    def end_of_stream(self) -> None:
        """The child is gone: a last line without its end counts too."""
        if self._partial:
            self._judge(self._partial)
            self._partial = b""

    def close(self) -> None:
        """No more output will come."""
        self._file.close()

    def _begin(self) -> BinaryIO:
        if self._path.exists():
            self._path.replace(self._path.with_suffix(".log.1"))
        return self._path.open("wb")

    def _judge(self, line: bytes) -> None:
        decoded = line.decode(errors="replace").rstrip()
        self.last_line = decoded or self.last_line
        if text := notable(decoded):
            self.last_notable = text
            self._forward(text)


def notable(line: str) -> str:
    """What the terminal should show of one line of a log, or "".

    Structured events count from `warning` on. What is not JSON is the complaint or the traceback
    of a program that is about to end, and counts; only the server's log, `PID:M …`, does not.
    """
    line = line.rstrip()
    if not line.startswith("{"):
        is_server = line.partition(":")[0].isdigit()
        return "" if is_server else line
    try:
        event = msgspec.json.decode(line, type=dict[str, object])
    except msgspec.DecodeError:
        return line
    return _summary(event) if event.get("level") in _NOTABLE else ""


def _summary(event: Mapping[str, object]) -> str:
    fields = " ".join(f"{name}={value}" for name, value in event.items() if name not in _HIDDEN)
    return f"{event.get('event', '')} {fields}".strip()
