"""A machine with an empty cache that knows one hub, and processes on it that fetch models."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from shared.engine.hub import Part
from tests.hub import Hub

ROOT = Path(__file__).parents[1]
# Started as the workers start; the handler is the draft worker's.
PROGRAM = """
import signal, sys
from shared.common import log
from shared.common.exits import exits_when_unavailable
from shared.config.flags import exits_on_config_error
from shared.engine.hub import Part, model_directory

def leave(*_unused):
    raise SystemExit(0)

signal.signal(signal.SIGTERM, leave)
log.configure("test", "")
with exits_on_config_error("test"), exits_when_unavailable():
    print(model_directory(sys.argv[1], Part(sys.argv[2])))
"""


@dataclass
class Machine:
    """A cache, and processes that use it."""

    home: Path
    hub: Hub

    def environment(self, **variables: str) -> dict[str, str]:
        """Of a process that knows this hub and this cache alone."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        own = {"HF_ENDPOINT": self.hub.url, "HF_HOME": str(self.home), "NO_PROXY": "127.0.0.1"}
        return kept | own | variables

    def start(self, value: str, part: Part = Part.WHOLE, **variables: str) -> subprocess.Popen[str]:
        """`model_directory` in a process of its own: the library reads its variables once."""
        return subprocess.Popen(
            [sys.executable, "-c", PROGRAM, value, part.value],
            cwd=ROOT, env=self.environment(**variables), text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def run(self, value: str, part: Part = Part.WHOLE, **variables: str) -> "Ended":
        """The same to its end."""
        process = self.start(value, part, **variables)
        out, err = process.communicate(timeout=60)
        return Ended(process.returncode, out.strip(), err)

    def fetch(self, value: str, part: Part = Part.WHOLE, **variables: str) -> Path:
        """The same, which has to succeed."""
        ended = self.run(value, part, **variables)
        assert ended.status == 0, ended.log
        return Path(ended.out)

    def cached(self) -> set[str]:
        """Names of all files under the cache's snapshots."""
        return {path.name for path in self.home.rglob("snapshots/**/*") if path.is_file()}


@dataclass
class Ended:
    """A process that is over."""

    status: int
    out: str
    log: str

    @property
    def events(self) -> dict[str, dict[str, object]]:
        """The log by event: every line of it must be one."""
        lines = [json.loads(line) for line in self.log.splitlines()]
        return {line["event"]: line for line in lines}
