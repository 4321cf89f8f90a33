"""The whole system as separate processes, driven as a Redis client would drive it."""

import secrets
import socket
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import msgspec
import redis
from redis.backoff import ConstantBackoff
from redis.retry import Retry

from shared.protocol.keys import Keys
from shared.protocol.records import Done, Failed, Record, Terminal, Tokens, from_fields
from tests.e2e.processes import DRAFT_MODEL, READY_S, TARGET_MODEL, Process, eventually
from tests.server import Server

END_S = 90.0


class System:
    """Targets, drafts and gateways on one server. Each is started, hurt and stopped by the test."""

    def __init__(self, server: Server, folder: Path) -> None:
        self.server = server
        self.keys = Keys()
        self._folder = folder
        self._processes: list[Process] = []
        patient = Retry(ConstantBackoff(0.1), 50)  # only reads and first-time writes go through it
        self.client = redis.Redis.from_url(server.url, retry=patient, socket_timeout=10)

    def start(self, role: str, *flags: str) -> Process:
        """Start one process without waiting for it."""
        log = self._folder / f"{role}-{len(self._processes)}.log"
        process = Process(role, "--redis-url", self.server.url, *flags, log=log)
        self._processes.append(process)
        return process

    def target(self, *flags: str) -> Process:
        """Start a target worker of the bundled model and wait until it is ready."""
        process = self.start("target_worker", "--model", str(TARGET_MODEL), *flags)
        process.wait_ready()
        return process

    def draft(self, *flags: str) -> Process:
        """Start a draft worker of the bundled model and wait until it is ready."""
        process = self.start("draft_worker", "--model", str(DRAFT_MODEL), *flags)
        process.wait_ready()
        return process

    def gateway(self, *flags: str) -> tuple[Process, str]:
        """Start a gateway and wait until it is ready; the process and its URL."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        process = self.start("gateway", "--port", str(port), *flags)
        url = f"http://127.0.0.1:{port}"
        eventually(lambda: _is_ok(f"{url}/ready"), READY_S)
        return process, url

    def submit(self, body: Mapping[str, Any], **fields: str) -> str:
        """Queue a job with nothing but XADD; its id."""
        job_id = f"job-{secrets.token_hex(8)}"
        entry: dict[Any, Any] = {"id": job_id, "body": msgspec.json.encode(body), **fields}
        self.client.xadd(self.keys.jobs(), entry)
        return job_id

    def log(self, job_id: str) -> list[Record]:
        """All records of a job so far."""
        return _records(self.client.xrange(self.keys.log(job_id)))

    def num_tokens(self, job_id: str) -> int:
        """Output tokens in the log so far."""
        return sum(
            len(record.token_ids) for record in self.log(job_id) if isinstance(record, Tokens)
        )

    def wait_tokens(self, job_ids: Sequence[str], num_tokens: int) -> None:
        """Wait until every one of these jobs has shown this many tokens."""
        eventually(lambda: all(self.num_tokens(job) >= num_tokens for job in job_ids), END_S)

    def are_over(self, job_ids: Iterable[str]) -> bool:
        """Whether every one of these jobs has its terminal record."""
        return all(self._is_over(job_id) for job_id in job_ids)

    def wait_end(self, job_ids: Sequence[str]) -> None:
        """Wait until every one of these jobs has its terminal record."""
        eventually(lambda: self.are_over(job_ids), END_S)

    def stop(self) -> None:
        """End everything that still runs, the last started first."""
        for process in reversed(self._processes):
            process.stop()
        self.client.close()

    def _is_over(self, job_id: str) -> bool:
        newest = _records(self.client.xrevrange(self.keys.log(job_id), count=1))
        return bool(newest) and isinstance(newest[0], Terminal)


def checked_tokens(records: Sequence[Record]) -> tuple[int, ...]:
    """The output of a job of one choice, after checking its log.

    Dense offsets, nothing twice, exactly one terminal record, which is last and is not an error.
    """
    token_ids: list[int] = []
    for record in records[:-1]:
        assert isinstance(record, Tokens), f"{record} before the end"
        assert record.offset == len(token_ids), f"offset {record.offset} after {len(token_ids)}"
        token_ids += record.token_ids
    end = records[-1]
    assert not isinstance(end, Failed), end
    assert isinstance(end, Done)
    assert end.usage.completion_tokens == len(token_ids)
    return tuple(token_ids)


def _records(reply: Any) -> list[Record]:  # noqa: ANN401 -- the client's types allow replies that a log never has
    """The records in a reply to XRANGE: pairs of an id and a mapping of bytes to bytes."""
    return [from_fields(fields) for _, fields in reply]


def _is_ok(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5).is_success
    except httpx.TransportError:
        return False
