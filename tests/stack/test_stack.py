"""`python -m stack` as a process, with real workers on tiny models."""

import json
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.tiny_models import save_llama

ROOT = Path(__file__).parents[2]
DEADLINE_S = 90.0

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(300)]


class Stack:
    """One run of the launcher, its output in files."""

    def __init__(self, folder: Path, *flags: str) -> None:
        self.err = folder / "stderr"
        with self.err.open("ab") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "stack", "--port", "0", "--target", str(folder / "target"),
                 "--draft", str(folder / "draft"), "--data-dir", str(folder / "data"), *flags],
                cwd=ROOT, stdout=subprocess.PIPE, stderr=err, text=True,
            )  # fmt: skip
        assert self.process.stdout is not None
        self.ready_line = self.process.stdout.readline()

    @property
    def url(self) -> str:
        found = re.search(r"http://127\.0\.0\.1:\d+$", self.ready_line.strip())
        assert found, self.ready_line + self.err.read_text()[-4_000:]
        return found[0]

    def children(self) -> dict[str, psutil.Process]:
        """By role: `server`, `gateway`, `target_worker`, `draft_worker`."""
        found = {}
        for child in psutil.Process(self.process.pid).children():
            words = child.cmdline()
            found[words[2] if words[1:2] == ["-m"] else "server"] = child
        return found

    def ask(self, **changes: object) -> str:
        """One whole answer."""
        body = {"model": "target", "messages": [{"role": "user", "content": "Hello"}]}
        data = json.dumps(body | {"max_tokens": 8, "seed": 7, "ignore_eos": True} | changes)
        request = urllib.request.Request(
            f"{self.url}/v1/chat/completions", data.encode(), {"content-type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=DEADLINE_S) as response:
            text: str = json.load(response)["choices"][0]["message"]["content"]
            return text

    def end(self) -> tuple[int, str]:
        """SIGTERM; the status and what else was written to stdout."""
        self.process.send_signal(signal.SIGTERM)
        rest, _ = self.process.communicate(timeout=DEADLINE_S)
        return self.process.returncode, rest


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stack")
    save_llama(folder / "target", seed=1)
    save_llama(folder / "draft", seed=2)
    return folder


@pytest.fixture
def start(models: Path) -> Iterator[Callable[..., Stack]]:
    """Starts stacks on one data folder; whatever is left of them is ended."""
    started: list[Stack] = []

    def begin(*flags: str) -> Stack:
        started.append(Stack(models, *flags))
        return started[-1]

    yield begin
    for stack in started:
        if stack.process.poll() is None:
            stack.process.kill()
        stack.process.communicate()


def test_the_system_starts_serves_heals_and_ends_in_order(start: Callable[..., Stack]) -> None:
    """One line when ready; a killed worker comes back; SIGTERM ends all of it with status 0."""
    stack = start()
    first = stack.ask()
    before = stack.children()
    assert set(before) == {"server", "gateway", "target_worker", "draft_worker"}
    before["target_worker"].kill()
    assert stack.ask() == first
    after = stack.children()
    assert after["target_worker"].pid != before["target_worker"].pid
    assert after["server"].pid == before["server"].pid
    assert stack.end() == (0, "")
    assert not any(child.is_running() for child in after.values())


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ties children to their parent")
def test_a_killed_stack_leaves_nothing_and_its_data_serves_the_next(
    start: Callable[..., Stack],
) -> None:
    """kill -9 of the launcher ends every child; the folder can be used again at once."""
    stack = start("--draft-workers", "0")
    text = stack.ask()
    children = stack.children()
    assert "draft_worker" not in children
    stack.process.kill()
    _, left = psutil.wait_procs(children.values(), timeout=DEADLINE_S)
    assert left == []
    again = start("--draft-workers", "0")
    assert again.ask() == text
    assert again.end() == (0, "")


def test_a_second_stack_on_the_folder_is_refused(start: Callable[..., Stack]) -> None:
    """It says why, and the first goes on."""
    first = start("--draft-workers", "0")
    second = start("--draft-workers", "0")
    assert second.process.wait(DEADLINE_S) == 2
    assert "another stack uses it" in second.err.read_text().splitlines()[-1]
    assert first.ask()
    assert first.end() == (0, "")
