"""The function library: its source, and whether a server can and does run it."""

import re
from pathlib import Path

import structlog
from redis.exceptions import ResponseError

from shared.bus.link import Link, Reply, pack
from shared.common.errors import ConfigError

LIBRARY = "outrider"
MIN_VERSION = (7, 0)  # functions, and the group lag that autoscaling reads; Valkey says 7.2
_PARTS = ("common", "jobs", "log", "mail")
_SETUP_TIMEOUT_S = 5.0

_log = structlog.get_logger()


def source() -> str:
    """The Lua of the whole library."""
    folder = Path(__file__).parent / "functions"
    parts = [(folder / f"{part}.lua").read_text() for part in _PARTS]
    return "\n".join([f"#!lua name={LIBRARY}", *parts])


SOURCE = source()


async def install(link: Link) -> None:
    """Load the library unless the server holds this very one, or a newer one.

    Raises:
        RedisError, OSError: the connection failed, or the server refused.
    """
    listing = await _call(link, "FUNCTION", "LIST", "LIBRARYNAME", LIBRARY, "WITHCODE")
    held = b"".join(part for part in _flatten(listing) if part.startswith(b"#!lua")).decode()
    if held != SOURCE and _version(held) <= _version(SOURCE):
        await _call(link, "FUNCTION", "LOAD", "REPLACE", SOURCE)


async def check_server(link: Link) -> None:
    """Refuse a server that is too old, or that may throw jobs away.

    Raises:
        ConfigError: what the operator has to change.
        RedisError, OSError: the connection failed.
    """
    try:
        text = (await _call(link, "INFO")).decode(errors="replace")
    except ResponseError as error:
        _log.warning("server_not_checked", reason=str(error))
        return
    info = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    version = info.get("redis_version", "0")
    if tuple(map(int, re.findall(r"\d+", version)[:2])) < MIN_VERSION:
        raise ConfigError(f"redis-url: server version {version}; needs Redis 7.0 or Valkey 7.2")
    if info.get("cluster_enabled") == "1":
        raise ConfigError("redis-url: the server runs in cluster mode; needs a single node")
    policy = info.get("maxmemory_policy", "unknown")
    if policy == "unknown":
        _log.warning("server_not_checked", reason="INFO does not name maxmemory_policy")
    elif policy != "noeviction":
        raise ConfigError(f"redis-url: maxmemory-policy {policy} may drop jobs; set noeviction")


def _version(text: str) -> int:
    found = re.search(r"^local LIBRARY_VERSION = (\d+)$", text, re.MULTILINE)
    return int(found[1]) if found else 0


def _flatten(reply: Reply) -> list[bytes]:
    if isinstance(reply, list):
        return [part for item in reply for part in _flatten(item)]
    return [reply] if isinstance(reply, bytes) else []


async def _call(link: Link, *command: str) -> Reply:
    (reply,) = await link.exchange(pack([command]), 1, timeout_s=_SETUP_TIMEOUT_S)
    if isinstance(reply, ResponseError):
        raise reply
    return reply
