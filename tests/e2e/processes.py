"""Real processes for end-to-end tests: started with the commands users run, ended by their ids."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TARGET_MODEL = ROOT / "models" / "storyteller"
DRAFT_MODEL = ROOT / "models" / "storyteller-draft"
READY_S = 60.0
STOP_S = 20.0


class Process:
    """One role of the system as its own process, its log kept for the report of a failed test."""

    def __init__(self, role: str, *flags: str, log: Path) -> None:
        self.role = role
        self.log = log
        environment = os.environ | {"PYTHONUNBUFFERED": "1"}
        with log.open("wb") as stream:
            self._process = subprocess.Popen(
                [sys.executable, "-m", role, *flags],
                cwd=ROOT,
                stdout=stream,
                stderr=subprocess.STDOUT,
                env=environment,
            )

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """The exit status, or None while it runs."""
        return self._process.poll()

    def wait_ready(self, event: str = "worker_ready") -> None:
        """Block until its log says that it is ready."""
        eventually(lambda: event in self.log.read_text() or self._gone(), READY_S)
        assert self.returncode is None, f"{self.role} ended early:\n{self.log.read_text()[-4000:]}"

    def send(self, number: signal.Signals) -> None:
        """Send a signal to this process alone."""
        self._process.send_signal(number)

    def kill(self) -> None:
        """kill -9, and wait until it is gone."""
        self._process.kill()
        self._process.wait(STOP_S)

    def stop(self) -> int:
        """SIGTERM, and wait; the exit status."""
        if self.returncode is None:
            self._process.send_signal(signal.SIGCONT)
            self._process.terminate()
        return self.wait()

    def wait(self) -> int:
        """Wait for an end that was asked for before; the exit status."""
        try:
            return self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.kill()
            raise

    def _gone(self) -> bool:
        return self.returncode is not None


def eventually(condition: Callable[[], object], timeout_s: float) -> None:
    """Poll until the condition holds.

    Raises:
        TimeoutError: it did not in time.
    """
    deadline_s = time.monotonic() + timeout_s
    pause = 0.02
    while not condition():
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"not within {timeout_s} s")
        signal.sigtimedwait([], pause)
