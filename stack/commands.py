"""The command line of each process of the system. compose.yaml starts the same ones."""

import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

from msgspec import Struct

from shared.config.source import absolute
from stack.config import StackConfig

ROOT = Path(__file__).resolve().parent.parent
STOP_MARGIN_S = 5.0  # beyond a program's own limit, before it is killed


class Command(Struct, frozen=True):
    """How to run one process, and how to end it."""

    name: str  # target-0: names its log
    argv: tuple[str, ...]
    stop_limit_s: float  # from SIGTERM to SIGKILL
    orphan_signal: int = signal.SIGKILL  # sent when the stack dies without ending it
    inherited_fds: tuple[int, ...] = ()


def server_command(
    binary: Path, folder: Path, *, port: int, inherited_fds: tuple[int, ...] = ()
) -> Command:
    """The embedded server: loopback only, every write on disk within a second, nothing evicted.

    Args:
        binary: a Valkey or Redis server.
        folder: its data; must exist.
        port: where it listens.
        inherited_fds: kept open by it, so that a lock on the folder lives as long as it does.
    """
    settings = {
        "port": str(port),
        "bind": "127.0.0.1",
        "dir": str(folder),
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "",
        "maxmemory-policy": "noeviction",
        "daemonize": "no",
    }
    flags = [word for name, value in settings.items() for word in (f"--{name}", value)]
    # SIGTERM lets it write out the last second even when the stack was killed.
    return Command(
        "server", (str(binary), *flags), 10.0, signal.SIGTERM, inherited_fds=inherited_fds
    )


def gateway_command(config: StackConfig, *, redis_url: str, port: int) -> Command:
    """The gateway."""
    flags = ("--host", config.host, "--port", str(port), *_drain(config))
    return _python_command("gateway", "gateway", config, redis_url, flags)


def target_command(config: StackConfig, index: int, *, redis_url: str) -> Command:
    """One target worker."""
    flags = ("--model", absolute(config.target), *_drain(config))
    return _python_command(f"target-{index}", "target_worker", config, redis_url, flags)


def draft_command(config: StackConfig, index: int, *, redis_url: str) -> Command:
    """One draft worker. It has nothing to drain: targets go on without it."""
    flags = ("--model", absolute(config.draft))
    return _python_command(f"draft-{index}", "draft_worker", config, redis_url, flags)


def child_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment of every child: imports from the tree, one thread for numerics."""
    paths = [str(ROOT), *filter(None, [environment.get("PYTHONPATH")])]
    return {
        **environment,
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
        "TOKENIZERS_PARALLELISM": "false",
    }


def _python_command(
    name: str, module: str, config: StackConfig, redis_url: str, flags: tuple[str, ...]
) -> Command:
    common = ("--redis-url", redis_url, "--key-prefix", config.key_prefix)
    argv = (sys.executable, "-m", module, *flags, *common, "--log-level", config.log_level.value)
    return Command(name, argv, config.drain_s + STOP_MARGIN_S)


def _drain(config: StackConfig) -> tuple[str, str]:
    return "--drain-s", f"{config.drain_s:g}"
