"""`python -m stack.demo`: start everything here, stream a story, then chat."""

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress
from typing import Annotated, Any

import httpx
from msgspec import Meta

from shared.common import log
from shared.config.flags import exits_on_config_error, load, log_config
from shared.config.source import served_name
from stack.chat import Figures, Message, ServiceError, answer, make_client
from stack.config import StackConfig, check_models
from stack.supervisor import StartFailed, Supervisor
from stack.system import prepared
from stack.terminal import Lines, Terminal, closing_line

FIRST_PROMPT = "Tell me a story about a dragon and a kite."
EXIT_INTERRUPTED = 130
TOO_LONG = "context_length_exceeded"
_HELP = "Write a line to go on; an empty line, /quit or Ctrl-D ends."


class DemoConfig(StackConfig, frozen=True, kw_only=True):
    """A stack, and what to ask it."""

    prompt: Annotated[str, Meta(description="answer this once and exit")] = ""
    temperature: Annotated[float, Meta(ge=0, le=2, description="0: always the same story")] = 0.7
    port: Annotated[int, Meta(ge=0, le=65_535, description="of the gateway; 0: any free one")] = 0


class Conversation:
    """The turns so far, and the service that answers.

    Args:
        client: to the gateway.
        terminal: where answers appear.
        config: model and temperature.
    """

    def __init__(self, client: httpx.AsyncClient, terminal: Terminal, config: DemoConfig) -> None:
        self._client = client
        self._terminal = terminal
        self._config = config
        self._turns: list[Message] = []

    async def say(self, text: str) -> bool:
        """Ask, and show the answer while it comes.

        Returns:
            Whether an answer came to its end; if not, the turn is forgotten.
        """
        self._turns.append(Message("user", text))
        while True:
            try:
                self._turns.append(Message("assistant", await self._answer()))
            except ServiceError as error:
                if error.code == TOO_LONG and len(self._turns) > 1:
                    del self._turns[:2]
                    self._terminal.remark("(the oldest turn no longer fits and is forgotten)")
                    continue
                self._terminal.complaint(f"error: {error}")
                self._turns.pop()
                return False
            return True

    async def _answer(self) -> str:
        text = ""
        figures = None
        pieces = answer(
            self._client,
            model=served_name(self._config.target),
            messages=self._turns,
            temperature=self._config.temperature,
        )
        try:
            async with aclosing(pieces) as stream:
                async for piece in stream:
                    if isinstance(piece, Figures):
                        figures = piece
                    else:
                        text += piece
                        self._terminal.text(piece)
        finally:
            if text:
                self._terminal.end_text()
        if figures is not None:
            self._terminal.remark(closing_line(figures))
        return text


async def converse(conversation: Conversation, terminal: Terminal, lines: Lines) -> None:
    """The first story, then one answer a line."""
    terminal.remark(f"> {FIRST_PROMPT}")
    await conversation.say(FIRST_PROMPT)
    terminal.remark(_HELP)
    while True:
        terminal.prompt()
        line = await lines.next()
        if line is None or line.strip() in ("", "/quit"):
            return
        await conversation.say(line.strip())


@asynccontextmanager
async def running_stack(config: DemoConfig, terminal: Terminal) -> AsyncIterator[str]:
    """The whole system, ready; ended in order when the context is left.

    Yields:
        The gateway's URL.
    Raises:
        ConfigError, StartFailed: see stack.__main__.
    """
    async with prepared(config) as system:
        with (config.data_dir / "logs" / "stack.log").open("w") as stream:
            log.configure("stack", "", level=config.log_level.value, stream=stream)
            log_config(config, prog="stack.demo")
            supervisor = Supervisor(config.data_dir / "logs", progress=terminal.remark)
            ready = asyncio.Event()
            serving = asyncio.ensure_future(
                supervisor.run(
                    system.groups, on_ready=ready.set, start_timeout_s=config.start_timeout_s
                )
            )
            try:
                await _either(ready, serving)
                yield system.gateway_url
            finally:
                terminal.remark("stopping …")
                supervisor.stop()
                # A second Ctrl-C must not leave processes behind.
                asyncio.get_running_loop().add_signal_handler(signal.SIGINT, supervisor.stop)
                await serving


async def _either(ready: asyncio.Event, serving: "asyncio.Future[None]") -> None:
    waiting = asyncio.ensure_future(ready.wait())
    either: set[asyncio.Future[Any]] = {waiting, serving}
    try:
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiting.cancel()
    if serving.done():
        serving.result()


async def demo(config: DemoConfig, terminal: Terminal) -> int:
    """The demo from start to end.

    Returns:
        The process's exit status: 0, or 1 when the one prompt got no answer.
    """
    terminal.remark("starting Outrider (the first time takes longest) …")
    async with running_stack(config, terminal) as url, make_client(url) as client:
        terminal.remark(f"serving {served_name(config.target)} at {url}\n")
        conversation = Conversation(client, terminal, config)
        if config.prompt:
            return 0 if await conversation.say(config.prompt) else 1
        await converse(conversation, terminal, Lines(sys.stdin.fileno()))
        return 0


async def _interruptible(config: DemoConfig, terminal: Terminal) -> int:
    task = asyncio.ensure_future(demo(config, terminal))
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, task.cancel)
    with suppress(asyncio.CancelledError):  # only a signal cancels it: that is an end, not a fault
        return await task
    return EXIT_INTERRUPTED if config.prompt else 0


def main() -> int:
    """Returns the process's exit status."""
    config = load(DemoConfig, prog="stack.demo", description="everything here, then a story")
    with exits_on_config_error("stack.demo"):
        check_models(config)
        terminal = Terminal.of_process()
        try:
            return asyncio.run(_interruptible(config, terminal))
        except StartFailed as failure:
            terminal.complaint(f"error: {failure}")
            return failure.status


if __name__ == "__main__":
    sys.exit(main())
