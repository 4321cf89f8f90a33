"""The whole system as groups of children: which processes, in which order, ready when."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from msgspec import Struct
from redis.exceptions import RedisError

from shared.common.clock import Clock, SystemClock
from shared.protocol.keys import Keys
from stack import commands
from stack.config import StackConfig
from stack.health import Role, gateway_is_ready, ready_workers, server_client
from stack.server import answers, free_port, own_folder, server_binary
from stack.supervisor import Group


class System(Struct, frozen=True):
    """What `python -m stack` runs."""

    groups: tuple[Group, ...]
    gateway_url: str
    redis_url: str


@asynccontextmanager
async def prepared(config: StackConfig, *, clock: Clock | None = None) -> AsyncIterator[System]:
    """Own the data folder, choose the ports, and say what is to run.

    Raises:
        ConfigError: the folder is in use, a port is taken, or no embedded server is at hand.
    """
    since_ms = (clock or SystemClock()).unix_ms()
    port = free_port(config.port, flag="--port", host=config.host)
    async with own_folder(config.data_dir) as lock:
        (config.data_dir / "logs").mkdir(exist_ok=True)
        redis_url, server = _server_group(config, lock)
        host = f"[{config.host}]" if ":" in config.host else config.host
        local = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}.get(host, host)  # noqa: S104 - a lookup
        gateway_url = f"http://{local}:{port}"
        groups = (
            server,
            *_worker_groups(config, redis_url, since_ms),
            Group(
                "gateway",
                (commands.gateway_command(config, redis_url=redis_url, port=port),),
                lambda: asyncio.to_thread(gateway_is_ready, gateway_url),
            ),
        )
        yield System(groups, gateway_url, redis_url)


def _server_group(config: StackConfig, lock: int) -> tuple[str, Group]:
    if config.redis_url is not None:
        url = config.redis_url
        return url, Group("server", (), lambda: answers(url))
    port = free_port(config.redis_port, flag="--redis-port")
    folder = config.data_dir / "server"
    folder.mkdir(exist_ok=True)
    command = commands.server_command(
        server_binary(), folder.resolve(), port=port, inherited_fds=(lock,)
    )
    own = f"redis://127.0.0.1:{port}/0"
    return own, Group("server", (command,), lambda: answers(own))


def _worker_groups(config: StackConfig, redis_url: str, since_ms: int) -> tuple[Group, ...]:
    async def count() -> Counter[str]:
        client = server_client(redis_url)
        try:
            return await ready_workers(client, Keys(config.key_prefix), since_ms=since_ms)
        except (RedisError, OSError):  # the supervisor restarts it; not ready until then
            return Counter()
        finally:
            await client.aclose()

    def has(role: Role, number: int) -> Callable[[], Awaitable[bool]]:
        async def are_there() -> bool:
            return (await count())[role] >= number

        return are_there

    drafts = tuple(
        commands.draft_command(config, index, redis_url=redis_url)
        for index in range(config.draft_workers)
    )
    targets = tuple(
        commands.target_command(config, index, redis_url=redis_url)
        for index in range(config.target_workers)
    )
    groups = (
        Group(_plural("draft worker", len(drafts)), drafts, has(Role.DRAFT, len(drafts))),
        Group(_plural("target worker", len(targets)), targets, has(Role.TARGET, len(targets))),
    )
    return tuple(group for group in groups if group.commands)


def _plural(noun: str, number: int) -> str:
    return noun if number == 1 else f"{number} {noun}s"
