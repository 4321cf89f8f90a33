"""Whether one part of the system is well: `python -m stack.health --role target`, status 0 or 1.

What containers ask. A worker is well when the server holds a heartbeat of its role; a hung one
loses it and ends itself. Needs no torch and nothing beyond what gateway and workers install.
"""

import asyncio
import http.client
import sys
from collections import Counter
from enum import StrEnum
from typing import Annotated
from urllib.parse import urlsplit

from msgspec import Meta
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from shared.common.errors import PeerError
from shared.config.common import CommonConfig
from shared.config.flags import load
from shared.protocol.keys import Keys
from shared.protocol.workers import decode_status

TIMEOUT_S = 3.0
_OK = 200


class Role(StrEnum):
    """What is asked about."""

    GATEWAY = "gateway"
    TARGET = "target"
    DRAFT = "draft"


class HealthConfig(CommonConfig, frozen=True, kw_only=True):
    """Whom to ask."""

    role: Annotated[Role, Meta(description="who should be well")]
    url: Annotated[str, Meta(pattern="^http://", description="the gateway")] = (
        "http://127.0.0.1:8000"
    )


def server_client(url: str) -> Redis:
    """A client that answers or fails within TIMEOUT_S and never asks twice."""
    return Redis.from_url(
        url, socket_timeout=TIMEOUT_S, socket_connect_timeout=TIMEOUT_S, retry=Retry(NoBackoff(), 0)
    )


async def ready_workers(client: Redis, keys: Keys, *, since_ms: int = 0) -> Counter[str]:
    """How many workers of each role have a heartbeat, do not drain and started after `since_ms`.

    Raises:
        RedisError: the server does not answer.
    """
    counts: Counter[str] = Counter()
    for member in await client.smembers(keys.workers):
        worker_id = member.decode() if isinstance(member, bytes) else member
        data = await client.get(keys.heartbeat(worker_id))
        if not isinstance(data, bytes):
            continue
        try:
            status = decode_status(data)
        except PeerError:  # another version's; not one of ours, so not ready
            continue
        if status.started_ms >= since_ms and not status.is_draining:
            counts[status.role] += 1
    return counts


def gateway_is_ready(url: str) -> bool:
    """Whether `/ready` of the gateway at `url` says 200. Blocks for TIMEOUT_S at most."""
    address = urlsplit(url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=TIMEOUT_S)
    try:
        connection.request("GET", "/ready")
        return connection.getresponse().status == _OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


async def is_well(config: HealthConfig) -> bool:
    """The answer to `config`."""
    if config.role is Role.GATEWAY:
        return await asyncio.to_thread(gateway_is_ready, config.url)
    client = server_client(config.redis_url)
    try:
        counts = await ready_workers(client, Keys(config.key_prefix))
    except (RedisError, OSError):
        return False
    finally:
        await client.aclose()
    return counts[config.role] > 0


def main() -> int:
    """Ask once."""
    config = load(
        HealthConfig, prog="stack.health", description="0 if a part of the system is well"
    )
    return 0 if asyncio.run(is_well(config)) else 1


if __name__ == "__main__":
    sys.exit(main())
