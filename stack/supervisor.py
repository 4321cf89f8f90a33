"""Starts children in order, keeps them running, ends them in order.

Knows commands, not what they serve: what "ready" means is given by `Group.is_ready`.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path

import structlog
from msgspec import Struct

from shared.common.clock import Clock, SystemClock
from stack.child import Child
from stack.commands import Command
from stack.output import Output

_POLL_S = 0.1
MAX_START_DEATHS = 4  # of one child in a row, before everything is ready for the first time
EXIT_CONFIG = 2  # a program that ends so will not do better the next time


class StartFailed(Exception):
    """Not everything became ready.

    Args:
        message: one sentence for a person.
        status: what this process should exit with.
    """

    def __init__(self, message: str, *, status: int = 1) -> None:
        super().__init__(message)
        self.status = status


class Group(Struct, frozen=True):
    """Children that are ready together and end together."""

    name: str  # "target worker": shown to a person
    commands: tuple[Command, ...]  # may be empty: something that runs already
    is_ready: Callable[[], Awaitable[bool]]


class Backoff(Struct, frozen=True):
    """How long to wait before a child is started again."""

    first_s: float = 0.5
    longest_s: float = 30.0
    forgiven_after_s: float = 60.0  # a child that lived longer starts from `first_s` again

    def delay_s(self, num_deaths: int) -> float:
        """After `num_deaths` deaths in a row, at least one."""
        return min(self.longest_s, self.first_s * 2.0 ** min(num_deaths - 1, 30))


class Supervisor:
    """Owns the children of one stack. `run` at most once.

    Args:
        logs: folder for one log a child.
        progress: gets one line for a person at every milestone.
        backoff: between the death of a child and its next start.
        clock: for the lifetimes of children.
    """

    def __init__(
        self,
        logs: Path,
        *,
        progress: Callable[[str], None],
        backoff: Backoff | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._logs = logs
        self._progress = progress
        self._backoff = backoff or Backoff()
        self._clock = clock or SystemClock()
        self._log = structlog.get_logger("stack")
        self._children: list[list[Child]] = []
        self._stopping = asyncio.Event()
        self._failure: StartFailed | None = None
        self._is_started = False
        self._missing = ""
        self._began_s = self._clock.monotonic_s()

    async def run(
        self, groups: Sequence[Group], *, on_ready: Callable[[], None], start_timeout_s: float
    ) -> None:
        """Start the groups, call `on_ready`, serve until `stop`, end them in reverse order.

        The others start together when the first is ready: they need it, but not each other.

        Raises:
            StartFailed: something did not become ready; everything has been ended in order.
        Cancelling kills the children.
        """
        async with asyncio.TaskGroup() as tasks:
            try:
                async with asyncio.timeout(start_timeout_s):
                    await self._start(groups, tasks)
            except TimeoutError:
                text = f"{self._missing} not ready after {start_timeout_s:g} s; see {self._logs}"
                self._fail(StartFailed(text))
            if not self._stopping.is_set():
                self._is_started = True
                on_ready()
            await self._stopping.wait()
            await self._stop_in_order()
        if self._failure is not None:
            raise self._failure

    def stop(self) -> None:
        """End everything in order. Asked again: at once."""
        if self._stopping.is_set():
            for child in self._all_children():
                child.kill()
        self._stopping.set()

    async def _start(self, groups: Sequence[Group], tasks: asyncio.TaskGroup) -> None:
        foundation, *others = groups
        self._spawn(foundation, tasks)
        await self._await_ready(foundation)
        for group in others:
            self._spawn(group, tasks)
        for group in others:
            await self._await_ready(group)

    def _spawn(self, group: Group, tasks: asyncio.TaskGroup) -> None:
        if self._stopping.is_set():
            return
        children = [self._child(command) for command in group.commands]
        self._children.append(children)
        for child in children:
            tasks.create_task(self._keep_running(child))

    async def _await_ready(self, group: Group) -> None:
        self._missing = group.name
        while not self._stopping.is_set():
            if await group.is_ready():
                took_s = self._clock.monotonic_s() - self._began_s
                self._log.info("group_ready", group=group.name, after_s=round(took_s, 1))
                self._progress(f"{group.name} ready ({took_s:.1f} s)")
                return
            await self._pause(_POLL_S)

    def _child(self, command: Command) -> Child:
        def forward(line: str) -> None:
            self._log.warning("child_said", child=command.name, line=line)

        return Child(command, Output(self._logs / f"{command.name}.log", forward))

    async def _keep_running(self, child: Child) -> None:
        try:
            await self._run_again_and_again(child)
        finally:
            child.output.close()

    async def _run_again_and_again(self, child: Child) -> None:
        name, num_deaths = child.command.name, 0
        while not child.is_stopping and not self._stopping.is_set():
            born_s = self._clock.monotonic_s()
            self._log.info("child_started", child=name, num_deaths=num_deaths)
            status = await child.run()
            if child.is_stopping:
                break
            is_hopeless = status == EXIT_CONFIG or num_deaths >= MAX_START_DEATHS
            if is_hopeless and not self._is_started:
                text = f"{name} ended with status {status}: {child.output.last_words}"
                self._fail(StartFailed(text, status=EXIT_CONFIG if status == EXIT_CONFIG else 1))
                break
            lived_s = self._clock.monotonic_s() - born_s
            num_deaths = 1 if lived_s > self._backoff.forgiven_after_s else num_deaths + 1
            delay_s = self._backoff.delay_s(num_deaths)
            self._log.warning(
                "child_died",
                child=name,
                status=status,
                restart_in_s=delay_s,
                last_words=child.output.last_words,
            )
            self._progress(f"{name} ended with status {status}; starting it again in {delay_s:g} s")
            await self._pause(delay_s)

    async def _stop_in_order(self) -> None:
        for children in reversed(self._children):
            async with asyncio.TaskGroup() as ending:
                for child in children:
                    ending.create_task(child.stop())
            self._log.info("children_ended", children=[child.command.name for child in children])

    async def _pause(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopping.wait()

    def _fail(self, failure: StartFailed) -> None:
        self._failure = self._failure or failure
        self._stopping.set()

    def _all_children(self) -> list[Child]:
        return [child for children in self._children for child in children]
