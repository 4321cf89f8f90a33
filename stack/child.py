"""One child process: started, listened to, ended. Knows nothing of why."""

import asyncio
import os
import signal
import sys
from asyncio.subprocess import PIPE, STDOUT, Process
from contextlib import suppress
from pathlib import Path

from stack.commands import ROOT, Command, child_environment
from stack.output import Output

_TETHER = Path(__file__).with_name("tether.py")
_CHUNK_BYTES = 64 << 10


class Child:
    """A command that may be run again and again, never twice at once.

    Args:
        command: what to run.
        output: where its output goes; closed by `close`.
    """

    def __init__(self, command: Command, output: Output) -> None:
        self.command = command
        self.output = output
        self.is_stopping = False
        self._process: Process | None = None

    @property
    def pid(self) -> int | None:
        """Of the running process, if there is one."""
        process = self._process
        return process.pid if process is not None and process.returncode is None else None

    async def run(self) -> int:
        """Run the command to its end.

        Returns:
            Its status; negative: the signal that ended it.
        Cancelling kills it and waits for its end.
        """
        tie = (sys.executable, "-I", "-S", str(_TETHER))
        whom = (str(os.getpid()), str(int(self.command.orphan_signal)))
        process = self._process = await asyncio.create_subprocess_exec(
            *tie, *whom, *self.command.argv,
            stdin=asyncio.subprocess.DEVNULL, stdout=PIPE, stderr=STDOUT,
            cwd=ROOT, env=child_environment(os.environ),
            start_new_session=True,  # Ctrl-C reaches the stack alone, which ends things in order
            pass_fds=self.command.inherited_fds,
        )  # fmt: skip
        assert process.stdout is not None
        try:
            if self.is_stopping:  # asked to while it was being started
                self._signal(process, signal.SIGKILL)
            while chunk := await process.stdout.read(_CHUNK_BYTES):
                self.output.feed(chunk)
            return await process.wait()
        finally:
            self.output.end_of_stream()
            await self._end(process)

    async def stop(self) -> None:
        """Ask the command to end, and end it when it has not done so within its limit."""
        self.is_stopping = True
        process = self._process
        if process is None or process.returncode is not None:
            return
        self._signal(process, signal.SIGTERM)
        with suppress(TimeoutError):
            async with asyncio.timeout(self.command.stop_limit_s):
                await process.wait()
        await self._end(process)

    def kill(self) -> None:
        """End the command at once; `run` returns soon after."""
        self.is_stopping = True
        if self._process is not None and self._process.returncode is None:
            self._signal(self._process, signal.SIGKILL)

    async def _end(self, process: Process) -> None:
        if process.returncode is None:
            self._signal(process, signal.SIGKILL)
            await process.wait()

    @staticmethod
    def _signal(process: Process, number: int) -> None:
        with suppress(ProcessLookupError):
            process.send_signal(number)
