"""How far a download is: counted by bars that show nothing, logged, and stopped between chunks.

The library reports to a tqdm class and to nothing else; ours is its own, switched off.
"""

import threading
import time
from typing import Any

import structlog

_BYTES_BAR = "huggingface_hub.snapshot_download"  # of several bars, the one of bytes on disk
_PROGRESS_EVERY_S = 5.0

_log = structlog.get_logger()


class Stopped(Exception):
    """Nobody waits for the download any more."""


class Progress:
    """Bytes so far, from many threads, logged now and then."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._is_stopped = threading.Event()
        self._done_bytes = 0
        self._said_s = time.monotonic()

    def stop(self) -> None:
        """End every transfer at its next chunk."""
        self._is_stopped.set()

    def go_on(self) -> None:
        """Called at every chunk.

        Raises:
            Stopped: `stop` was called.
        """
        if self._is_stopped.is_set():
            raise Stopped

    def add(self, num_bytes: int, total_bytes: int | None) -> None:
        """Count a chunk; `total_bytes` grows while files are begun."""
        now_s = time.monotonic()
        with self._lock:
            self._done_bytes += num_bytes
            is_due = now_s - self._said_s >= _PROGRESS_EVERY_S
            if is_due:
                self._said_s = now_s
        if is_due:
            _log.info(
                "model_download_progress", done_bytes=self._done_bytes, total_bytes=total_bytes
            )


def bar_class(progress: Progress) -> type:
    """The library's own bar, which shows nothing and tells `progress`."""
    from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]  # noqa: PLC0415

    class Bar(tqdm):
        monitor_interval = 0  # no thread for a bar that is not shown

        def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401  # tqdm's own
            self._counts = kwargs.get("name") == _BYTES_BAR
            super().__init__(*args, **kwargs | {"disable": True})  # type: ignore[no-untyped-call]

        def update(self, n: float | None = 1) -> None:
            progress.go_on()
            if self._counts:
                progress.add(int(n or 0), self.total)

    return Bar
