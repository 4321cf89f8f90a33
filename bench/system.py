"""Our own system for a bench: `python -m stack` as a user starts it, on ports of its own."""

import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STOP_S = 30
_URL = re.compile(r"http://[\w.:-]+")


@contextmanager
def environment(**values: str) -> Iterator[None]:
    """Variables for the processes that are started meanwhile."""
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def running(*flags: str) -> Iterator[str]:
    """The whole system with these flags of the launcher.

    Yields:
        The gateway's URL, once everything is ready.

    Raises:
        RuntimeError: it ended before it was ready; its own words are on the terminal.
    """
    with tempfile.TemporaryDirectory(prefix="outrider-bench-") as data_dir:
        command = [sys.executable, "-m", "stack", "--port", "0", "--data-dir", data_dir]
        command += ["--log-level", "warning", *flags]
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        try:
            assert process.stdout is not None
            found = next(filter(None, map(_URL.search, process.stdout)), None)
            if found is None:
                raise RuntimeError(f"{' '.join(command)} exited with {process.wait()}")
            yield found.group()
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(STOP_S)
