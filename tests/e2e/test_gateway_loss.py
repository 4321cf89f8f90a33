"""kill -9 of a gateway: its clients come back to another one and miss nothing."""

import json
import signal
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from shared.protocol.records import Tokens
from tests.e2e.processes import Process
from tests.e2e.reference import plain_tokens
from tests.e2e.system import System, checked_tokens
from tests.e2e.test_faults import bodies

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]

CUT_AFTER = 12  # frames that a client has seen when its gateway dies


class Client:
    """One user: reads a streamed answer, remembers the cursor of the last frame and the text."""

    def __init__(self) -> None:
        self.text = ""
        self.cursor = ""
        self.response_id = ""
        self.num_frames = 0
        self.is_done = False

    def read(self, url: str, body: dict[str, Any]) -> None:
        """Ask for a new answer and read it until it ends or the connection breaks."""
        request = body | {"stream": True, "on_disconnect": "detach"}
        self._read("POST", f"{url}/v1/chat/completions", json=request)

    def resume(self, url: str) -> None:
        """Read the rest of the same answer, from wherever it is served."""
        headers = {"Last-Event-ID": self.cursor}
        self._read("GET", f"{url}/v1/chat/completions/{self.response_id}", headers=headers)

    def _read(self, method: str, url: str, **arguments: Any) -> None:  # noqa: ANN401 - httpx takes many
        with httpx.stream(method, url, timeout=60, **arguments) as response:
            assert response.status_code == 200, response.read()
            try:
                for line in response.iter_lines():
                    self._take(line)
            except httpx.TransportError:
                return  # the gateway is gone; what was read counts

    def _take(self, line: str) -> None:
        if line.startswith("id: "):
            self.cursor = line.removeprefix("id: ")
        elif line == "data: [DONE]":
            self.is_done = True
        elif line.startswith("data: "):
            frame = json.loads(line.removeprefix("data: "))
            self.response_id = frame["id"]
            self.num_frames += 1
            self.text += "".join(c["delta"].get("content") or "" for c in frame["choices"])


def kill_when_streaming(gateway: Process, clients: list[Client]) -> None:
    """kill -9 once every client has seen some frames."""
    while min(client.num_frames for client in clients) < CUT_AFTER:
        signal.sigtimedwait([], 0.01)
    gateway.kill()


def test_clients_of_a_killed_gateway_resume_on_another(system: System) -> None:
    """Eight streams cut mid-way and resumed elsewhere by cursor: no gap, no repeat."""
    system.target()
    system.draft()
    first, first_url = system.gateway()
    _, second_url = system.gateway()
    requests = bodies()
    clients = [Client() for _ in requests]
    with ThreadPoolExecutor(len(clients)) as pool:
        reads = [
            pool.submit(client.read, first_url, body)
            for client, body in zip(clients, requests, strict=True)
        ]
        kill_when_streaming(first, clients)
        for read in reads:
            read.result()
        assert not any(client.is_done for client in clients)
        list(pool.map(lambda client: client.resume(second_url), clients))
    for client, body in zip(clients, requests, strict=True):
        records = system.log(client.response_id)
        assert checked_tokens(records) == plain_tokens(body)
        assert client.is_done
        shown = "".join(record.text for record in records[:-1] if isinstance(record, Tokens))
        assert client.text == shown + getattr(records[-1], "text", "")
