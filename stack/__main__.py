"""`python -m stack`: the whole system on this machine, until SIGTERM or Ctrl-C."""

import asyncio
import signal
import sys

import structlog

from shared.common import log
from shared.config.flags import exits_on_config_error, load, log_config
from shared.config.source import served_name
from stack.config import StackConfig, check_models
from stack.supervisor import StartFailed, Supervisor
from stack.system import prepared

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


async def serve(config: StackConfig) -> None:
    """Run the system until a signal; a second one ends it at once.

    Raises:
        ConfigError: something in `config` cannot work.
        StartFailed: something did not become ready.
    """
    async with prepared(config) as system:
        supervisor = Supervisor(config.data_dir / "logs", progress=lambda _line: None)
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.add_signal_handler(number, supervisor.stop)

        def on_ready() -> None:
            name = served_name(config.target)
            sys.stdout.write(f"Outrider serves {name} at {system.gateway_url}\n")
            sys.stdout.flush()

        await supervisor.run(
            system.groups, on_ready=on_ready, start_timeout_s=config.start_timeout_s
        )


def main() -> int:
    """Returns the process's exit status: 0 after a signal, 2 for a bad setting, else 1."""
    config = load(StackConfig, prog="stack", description="the whole system on this machine")
    log.configure("stack", "", level=config.log_level.value)
    log_config(config, prog="stack")
    with exits_on_config_error("stack"):
        check_models(config)
        try:
            asyncio.run(serve(config))
        except StartFailed as failure:
            structlog.get_logger("stack").error("start_failed", reason=str(failure))
            return failure.status
    return 0


if __name__ == "__main__":
    sys.exit(main())
