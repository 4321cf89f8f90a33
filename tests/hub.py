"""A model hub on loopback: the endpoints and headers that huggingface_hub asks for, and faults."""

import contextlib
import hashlib
import json
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import unquote, urlsplit

COMMIT = "5eed" * 10
ENDLESS_BYTES = 8 << 30  # as announced; nobody waits for them
_NUM_PARTS = 4  # org, name, what, of which revision
_PAUSE_S = 0.01  # after each MiB of such a file: the disk is shared


@dataclass
class Repository:
    """Files at one commit, which some names stand for."""

    files: Mapping[str, bytes]
    revisions: tuple[str, ...] = ("main", COMMIT)
    token: str | None = None  # who may read it; None: anybody
    refusal: tuple[int, str] | None = None  # status and X-Error-Code, instead of any answer
    page: bytes | None = None  # this, instead of any answer

    @classmethod
    def of(cls, directory: Path, others: Mapping[str, bytes] | None = None) -> Self:
        """What is in a directory, and files besides, by name."""
        files = {path.name: path.read_bytes() for path in sorted(directory.iterdir())}
        return cls({**files, **(others or {})})


@dataclass
class Hub:
    """Serves repositories by id, and notes what was asked for.

    Args:
        repositories: by id.
        cuts: by file: how often its transfer still breaks off, half of the rest sent.
        deaths: these files break off at once, always.
        endless: this file is sent for ever.
    """

    repositories: dict[str, Repository] = field(default_factory=dict)
    cuts: dict[str, int] = field(default_factory=dict)
    deaths: set[str] = field(default_factory=set)
    endless: str = ""
    requests: list[tuple[str, str]] = field(default_factory=list)  # method and path
    is_closed: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Self:
        hub: Hub = self

        class Handler(_Handler):
            served = hub

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.block_on_close = False
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Nobody listens any more."""
        self.is_closed.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def url(self) -> str:
        """For HF_ENDPOINT."""
        return f"http://127.0.0.1:{self._server.server_port}"

    @property
    def downloads(self) -> set[str]:
        """The files whose content was asked for."""
        paths = [path for method, path in self.requests if method == "GET"]
        return {
            path.split("/resolve/")[1].split("/", 1)[1] for path in paths if "/resolve/" in path
        }


class _Handler(BaseHTTPRequestHandler):
    served: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_unused: object) -> None:
        """The test asks `Hub.requests`."""

    def do_HEAD(self) -> None:
        self._answer(is_head=True)

    def do_GET(self) -> None:
        self._answer(is_head=False)

    def _answer(self, *, is_head: bool) -> None:
        path = unquote(urlsplit(self.path).path).removeprefix("/")
        self.served.requests.append((self.command, path))
        parts = path.removeprefix("api/models/").split("/", _NUM_PARTS - 1)
        repository = self.served.repositories.get("/".join(parts[:2]))
        if repository is None:
            self._refuse(404, "RepoNotFound")
        elif repository.refusal is not None:
            self._refuse(*repository.refusal)
        elif repository.page is not None:
            self._send(repository.page)
        elif repository.token not in (
            None,
            self.headers.get("authorization", "").removeprefix("Bearer "),
        ):
            self._refuse(401, "GatedRepo")
        elif len(parts) < _NUM_PARTS:
            self._refuse(404, "EntryNotFound")
        else:
            self._serve(repository, kind=parts[2], rest=parts[3], is_head=is_head)

    def _serve(self, repository: Repository, *, kind: str, rest: str, is_head: bool) -> None:
        revision = rest.split("/", 1)[0] if kind == "resolve" else rest
        if revision not in repository.revisions:
            self._refuse(404, "RevisionNotFound")
        elif kind == "revision":
            self._send(json.dumps({"id": "org/name", "sha": COMMIT}).encode())
        elif kind == "tree":
            listing = [
                {"type": "file", "path": name, "size": len(data), "oid": _etag(data)}
                for name, data in repository.files.items()
            ]
            self._send(json.dumps(listing).encode())
        else:
            self._send_file(rest.split("/", 1)[1], repository, is_head=is_head)

    def _send_file(self, name: str, repository: Repository, *, is_head: bool) -> None:
        if name not in repository.files:
            self._refuse(404, "EntryNotFound")
            return
        data = repository.files[name]
        start = int(self.headers.get("range", "bytes=0-").removeprefix("bytes=").split("-")[0])
        size = ENDLESS_BYTES if name == self.served.endless else len(data) - start
        self.send_response(206 if start else 200)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{_etag(data)}"')
        self.send_header("Content-Length", str(size))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        if not is_head:
            self._send_body(name, data[start:])

    def _send_body(self, name: str, rest: bytes) -> None:
        if name == self.served.endless:
            while not self.served.is_closed.wait(_PAUSE_S):
                self.wfile.write(bytes(1 << 20))
        elif name in self.served.deaths:
            self.close_connection = True
        elif self.served.cuts.get(name, 0) > 0:
            self.served.cuts[name] -= 1
            self.wfile.write(rest[: len(rest) // 2])
            self.close_connection = True
        else:
            self.wfile.write(rest)

    def _send(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()


def _etag(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


def piece_sizes(cache: Path) -> list[int]:
    """Of files in a cache that are not whole; pieces and folders may go while one looks."""
    sizes = []
    for folder, _, names in os.walk(cache):  # unlike rglob it passes over folders that have gone
        for name in names:
            if name.endswith(".incomplete"):
                with contextlib.suppress(FileNotFoundError):
                    sizes.append((Path(folder) / name).stat().st_size)
    return sizes
