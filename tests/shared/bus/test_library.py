"""The function library: same constants as the rest, loaded once, never replaced by an older one."""

import re
from pathlib import Path

import pytest
import structlog.testing

from shared.bus import library
from shared.bus.connection import Bus
from shared.bus.link import Link, Reply
from shared.common.errors import ConfigError
from shared.protocol import limits
from shared.protocol.keys import TARGET_GROUP, Keys
from tests.conftest import ConnectBus
from tests.server import Server

CONSTANT = re.compile(r"^local ([A-Z_]+) = (?:'(\w+)'|(\d+))$", re.MULTILINE)


def test_the_server_knows_the_same_limits() -> None:
    """Each constant of the Lua source is the one of shared.protocol."""
    constants = {
        name: text or int(digits) for name, text, digits in CONSTANT.findall(library.SOURCE)
    }
    assert constants.pop("LIBRARY_VERSION") >= 1
    assert constants.pop("PROTOCOL_VERSION") == str(limits.PROTOCOL_VERSION)
    assert constants.pop("GROUP") == TARGET_GROUP
    assert constants == {name: getattr(limits, name) for name in constants}
    assert len(constants) >= 9


def test_no_command_beyond_the_floor_is_used() -> None:
    """Nothing that only Redis 8 knows, and never XDEL: it makes the group's lag nil."""
    assert not re.search(r"XACKDEL|XDELEX|XNACK|IDMP|KEEPREF|'XDEL'", library.SOURCE)


@pytest.mark.server
async def test_it_is_loaded_once(connect_bus: ConnectBus) -> None:
    """A second process with the same library loads nothing."""
    first = await connect_bus("target:a")
    loads = await _num_loads(first)
    await connect_bus("target:b")
    assert await _num_loads(first) == loads
    assert await first.call("FCALL_RO", "outrider_version", 0) == 1


async def _num_loads(bus: Bus) -> int:
    stats: bytes = await bus.call("INFO", "commandstats")
    found = re.search(rb"cmdstat_function\|load:calls=(\d+)", stats)
    return int(found[1]) if found else 0


@pytest.mark.server
async def test_an_older_library_is_replaced_and_a_newer_one_stays(connect_bus: ConnectBus) -> None:
    """So processes of two versions can run side by side during an upgrade."""
    bus = await connect_bus("target:a")
    for version, expected in ((0, 1), (99, 99)):
        text = library.SOURCE.replace("LIBRARY_VERSION = 1", f"LIBRARY_VERSION = {version}")
        await bus.call("FUNCTION", "LOAD", "REPLACE", text)
        await connect_bus("target:b")
        assert await bus.call("FCALL_RO", "outrider_version", 0) == expected
    await bus.call("FUNCTION", "LOAD", "REPLACE", library.SOURCE)


@pytest.mark.server
async def test_a_server_that_may_evict_jobs_is_refused(tmp_path: Path) -> None:
    """Any policy but noeviction can lose a job in silence."""
    server = Server(tmp_path / "valkey", maxmemory_policy="allkeys-lru").start()
    try:
        with pytest.raises(ConfigError, match="allkeys-lru may drop jobs"):
            await Bus.connect(server.url, keys=Keys(), worker_id="target:a")
    finally:
        server.kill()


class ScriptedLink(Link):
    """A link to a server that says one thing whatever it is asked."""

    def __init__(self, reply: str) -> None:
        self._reply = reply.encode()

    async def exchange(self, payload: bytes, num_replies: int, *, timeout_s: float) -> list[Reply]:  # noqa: ARG002 - the interface has them
        """See Link."""
        return [self._reply] * num_replies


@pytest.mark.parametrize(
    ("info", "reason"),
    [
        ("redis_version:6.2.14\r\nmaxmemory_policy:noeviction", "6.2.14; needs Redis 7.0"),
        ("maxmemory_policy:noeviction", "needs Redis 7.0"),
        ("redis_version:7.2.4\r\ncluster_enabled:1", "cluster mode"),
        ("redis_version:7.2.4\r\nmaxmemory_policy:volatile-ttl", "volatile-ttl"),
    ],
    ids=["too old", "unknown version", "cluster", "evicting"],
)
async def test_a_server_that_cannot_work_is_named(info: str, reason: str) -> None:
    """The operator reads what to change."""
    with pytest.raises(ConfigError, match=reason):
        await library.check_server(ScriptedLink(info))


async def test_a_server_that_hides_its_policy_is_taken_on_trust() -> None:
    """With a warning in the log."""
    with structlog.testing.capture_logs() as logs:
        await library.check_server(ScriptedLink("redis_version:7.0.0"))
    assert [log["event"] for log in logs] == ["server_not_checked"]


@pytest.mark.server
async def test_a_server_that_forbids_info_is_taken_on_trust(connect_bus: ConnectBus) -> None:
    """A managed server may hide its settings; that is logged, not fatal."""
    admin = await connect_bus("target:admin")
    await admin.call("ACL", "SETUSER", "shy", "on", ">pw", "~*", "+@all", "-info", "-config")
    try:
        url = admin_url(admin).replace("redis://", "redis://shy:pw@")
        bus = await connect_bus("target:a", url=url)
        assert await bus.call("FCALL_RO", "outrider_version", 0) == 1
    finally:
        await admin.call("ACL", "DELUSER", "shy")


def admin_url(bus: Bus) -> str:
    options = bus.commands.connection_pool.connection_kwargs
    return f"redis://{options['host']}:{options['port']}/0"
