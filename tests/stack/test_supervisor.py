import asyncio
import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from stack.commands import Command
from stack.supervisor import MAX_START_DEATHS, Backoff, Group, StartFailed, Supervisor

QUICK = Backoff(first_s=0.01, longest_s=0.02)
# A child that says who it is in a file, and ends on SIGTERM after noting that too.
PROGRAM = """
import os, signal, sys, time
def end(*_):
    open(sys.argv[1] + ".order", "a").write(sys.argv[2] + "\\n")
    sys.exit(0)
signal.signal(signal.SIGTERM, signal.SIG_IGN if "stubborn" in sys.argv else end)
open(sys.argv[1] + "." + sys.argv[2], "a").write(f"{os.getpid()}\\n")
if "dies" in sys.argv: sys.exit(int(sys.argv[-1]))
while True: signal.pause()
"""


class Sandbox:
    """Fake children that leave notes in a folder."""

    def __init__(self, folder: Path) -> None:
        self.notes = folder / "notes"
        self.logs = folder
        self.lines: list[str] = []

    def command(self, name: str, *words: str, stop_limit_s: float = 10.0) -> Command:
        argv = (sys.executable, "-S", "-c", PROGRAM, str(self.notes), name, *words)
        return Command(name, argv, stop_limit_s)

    def group(self, name: str, *commands: Command) -> Group:
        async def is_ready() -> bool:
            return all(self.pids(command.name) for command in commands)

        return Group(name, commands, is_ready)

    def pids(self, name: str) -> list[int]:
        with suppress(FileNotFoundError):
            return [int(line) for line in Path(f"{self.notes}.{name}").read_text().split()]
        return []

    def ending(self) -> list[str]:
        return Path(f"{self.notes}.order").read_text().split()

    def supervisor(self) -> Supervisor:
        return Supervisor(self.logs, progress=self.lines.append, backoff=QUICK)


@pytest.fixture
def sandbox(tmp_path: Path) -> Sandbox:
    return Sandbox(tmp_path)


async def until(condition: Callable[[], object]) -> None:
    """Poll; fail after a deadline."""
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


async def run(
    supervisor: Supervisor, groups: Sequence[Group], during: Callable[[], object]
) -> None:
    """Run to readiness, await `during`, stop in order."""
    ready = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(supervisor.run(groups, on_ready=ready.set, start_timeout_s=20))
        async with asyncio.timeout(20):
            await ready.wait()
        await until(during)
        supervisor.stop()


async def test_groups_start_after_the_first_and_end_in_reverse(sandbox: Sandbox) -> None:
    """The server is there before and after everything that needs it."""
    names = ("server", "drafts", "targets", "gateway")
    groups = [sandbox.group(name, sandbox.command(name)) for name in names]
    await run(sandbox.supervisor(), groups, lambda: True)
    assert sandbox.ending() == ["gateway", "targets", "drafts", "server"]
    assert [line.split()[0] for line in sandbox.lines] == list(names)
    assert not any(psutil.pid_exists(pid) for name in names for pid in sandbox.pids(name))


async def test_a_child_that_is_killed_is_started_again(sandbox: Sandbox) -> None:
    """Its death is logged and told, the others do not notice."""
    groups = [
        sandbox.group("server", sandbox.command("server")),
        sandbox.group("targets", sandbox.command("target-0")),
    ]

    def kill_once() -> bool:
        pids = sandbox.pids("target-0")
        if len(pids) == 1:
            with suppress(ProcessLookupError):
                os.kill(pids[0], signal.SIGKILL)
        return len(pids) > 1

    await run(sandbox.supervisor(), groups, kill_once)
    assert len(sandbox.pids("server")) == 1
    assert "target-0 ended with status -9; starting it again in 0.01 s" in sandbox.lines


async def test_a_child_that_ignores_the_order_is_killed(sandbox: Sandbox) -> None:
    """Ending takes its limit and no longer."""
    group = sandbox.group("targets", sandbox.command("t", "stubborn", stop_limit_s=0.1))
    await run(sandbox.supervisor(), [group], lambda: True)
    assert not psutil.pid_exists(sandbox.pids("t")[0])


async def test_a_second_signal_ends_everything_at_once(sandbox: Sandbox) -> None:
    """Whoever presses Ctrl-C twice does not wait."""
    supervisor = sandbox.supervisor()
    group = sandbox.group("targets", sandbox.command("t", "stubborn", stop_limit_s=60))
    ready = asyncio.Event()
    async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
        tasks.create_task(supervisor.run([group], on_ready=ready.set, start_timeout_s=20))
        await ready.wait()
        supervisor.stop()
        await asyncio.sleep(0)
        supervisor.stop()
    assert not psutil.pid_exists(sandbox.pids("t")[0])


async def test_a_bad_setting_of_a_child_fails_the_start(sandbox: Sandbox) -> None:
    """Status 2 means that another try would end the same way."""

    async def never() -> bool:
        return False

    good = sandbox.group("server", sandbox.command("server"))
    bad = Group("gateway", (sandbox.command("gateway", "dies", "2"),), never)
    with pytest.raises(StartFailed) as failure:
        await sandbox.supervisor().run([good, bad], on_ready=lambda: None, start_timeout_s=20)
    assert failure.value.status == 2
    assert not psutil.pid_exists(sandbox.pids("server")[0])


async def test_a_child_that_dies_at_every_start_fails_the_start(sandbox: Sandbox) -> None:
    """Somebody who starts the system reads what it said, instead of waiting for ever."""

    async def never() -> bool:
        return False

    group = Group("gateway", (sandbox.command("gateway", "dies", "7"),), never)
    with pytest.raises(StartFailed, match="gateway ended with status 7: ") as failure:
        await sandbox.supervisor().run([group], on_ready=lambda: None, start_timeout_s=20)
    assert failure.value.status == 1
    assert len(sandbox.pids("gateway")) == MAX_START_DEATHS + 1


async def test_a_start_that_takes_too_long_fails_with_what_is_missing(sandbox: Sandbox) -> None:
    """The message names the part that never became ready, and where its log is."""

    async def never() -> bool:
        return False

    group = Group("target worker", (sandbox.command("t"),), never)
    with pytest.raises(StartFailed, match=r"target worker not ready after 0\.2 s; see "):
        await sandbox.supervisor().run([group], on_ready=lambda: None, start_timeout_s=0.2)


async def test_cancelling_leaves_no_process(sandbox: Sandbox) -> None:
    """Whatever ends the stack, its children end."""
    group = sandbox.group("t", sandbox.command("t", "stubborn"))
    task = asyncio.ensure_future(
        sandbox.supervisor().run([group], on_ready=lambda: None, start_timeout_s=20)
    )
    await until(lambda: sandbox.pids("t"))
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    assert not psutil.pid_exists(sandbox.pids("t")[0])


@pytest.mark.parametrize(
    ("num_deaths", "delay_s"), [(1, 0.5), (2, 1.0), (6, 16.0), (7, 30.0), (10_000, 30.0)]
)
def test_the_wait_before_a_restart_doubles_up_to_a_bound(num_deaths: int, delay_s: float) -> None:
    """A child that dies at once for ever costs next to nothing."""
    assert Backoff().delay_s(num_deaths) == delay_s
