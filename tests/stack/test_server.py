import asyncio
import os
import signal
import socket
from pathlib import Path

import pytest
from redis.asyncio import Redis

from shared.common.errors import ConfigError
from stack.child import Child
from stack.commands import server_command
from stack.output import Output
from stack.server import answers, free_port, own_folder, server_binary


async def test_two_stacks_cannot_share_a_folder(tmp_path: Path) -> None:
    """The second one is told so instead of corrupting the data of the first."""
    async with own_folder(tmp_path):
        with pytest.raises(ConfigError, match=r"--data-dir is .*: another stack uses it"):
            async with own_folder(tmp_path, patience_s=0.1):
                pass
    async with own_folder(tmp_path, patience_s=0.1):
        pass


async def test_a_folder_stays_owned_while_an_orphaned_server_ends(tmp_path: Path) -> None:
    """A server that outlives its stack for a moment keeps the next one out."""
    async with own_folder(tmp_path) as lock:
        orphan = await asyncio.create_subprocess_exec("/bin/sleep", "600", pass_fds=(lock,))
    with pytest.raises(ConfigError):
        async with own_folder(tmp_path, patience_s=0.1):
            pass
    orphan.kill()
    await orphan.wait()
    async with own_folder(tmp_path, patience_s=0.1):
        pass


async def test_a_folder_that_cannot_be_made_is_a_bad_setting(tmp_path: Path) -> None:
    """The flag, the path and the system's reason are named."""
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"--data-dir is .*file/x': Not a directory"):
        async with own_folder(tmp_path / "file" / "x"):
            pass


def test_a_taken_port_is_a_bad_setting() -> None:
    """It is found out before anything starts."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"--port is {port}: .*must be a free port or 0"):
            free_port(port, flag="--port")
    assert free_port(0, flag="--port") > 0


@pytest.mark.server
async def test_data_survives_a_server_that_is_killed(tmp_path: Path) -> None:
    """What was written a second ago is on disk; the next start reads it, and evicts nothing."""
    port = free_port(0, flag="--redis-port")
    url = f"redis://127.0.0.1:{port}/0"
    output = Output(tmp_path / "server.log", lambda _line: None)
    child = Child(server_command(server_binary(), tmp_path, port=port), output)
    for expected in (None, b"1"):
        running = asyncio.ensure_future(child.run())
        async with asyncio.timeout(20):
            while not await answers(url):
                await asyncio.sleep(0.02)
        client = Redis.from_url(url)
        assert await client.get("key") == expected
        assert (await client.config_get("maxmemory-policy"))["maxmemory-policy"] == "noeviction"
        await client.set("key", "1")
        await client.waitaof(1, 0, 5_000)
        await client.aclose()
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)
        assert await running == -signal.SIGKILL
    output.close()


async def test_nobody_answers_on_a_closed_port() -> None:
    """Which is no error, only not yet."""
    assert not await answers(f"redis://127.0.0.1:{free_port(0, flag='--port')}/0")
