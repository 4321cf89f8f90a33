"""Make `.venv` hold exactly what the lock says. Run by any Python >= 3.11; standard library only.

Torch is pinned beside the lock, not in it: its builds differ by machine and index, so no one hash
is right (docs/decisions.md). What it needs is locked, and the lock constrains its installation.
Safe to run twice at once, and again after an interruption.
"""

import fcntl
import hashlib
import os
import re
import subprocess
import sys
import time
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = ROOT / ".venv"
LOCK = ROOT / "requirements" / "all.txt"
TORCH = ROOT / "requirements" / "torch.txt"
TRITON = ROOT / "requirements" / "triton.txt"
OLDEST = (3, 11)
_PINNED = re.compile(r"^([A-Za-z0-9._-]+==[^\\\n]+?)\s*\\?$", re.MULTILINE)
_IDLE_LINES = ("Requirement already satisfied", "Ignoring ", "Looking in ", "Using cached ")
_CPU_HINT = (
    "(Torch's default build for Linux brings gigabytes of GPU libraries. For the small CPU build,\n"
    "stop and set PIP_EXTRA_INDEX_URL to the package index that PyTorch names for CPU.)"
)


def main() -> int:
    """Install unless the stamp says that it is done.

    Returns:
        The process's exit status: 0, or pip's.
    """
    if sys.version_info < OLDEST:
        sys.stderr.write("outrider: needs Python >= 3.11; set PYTHON to one\n")
        return 2
    with _exclusively():
        if stamp(ENVIRONMENT).exists():
            return 0
        return _install()


def stamp(environment: Path) -> Path:
    """The file whose presence says that `environment` holds this very lock."""
    locks = b"".join(path.read_bytes() for path in (LOCK, TORCH, TRITON))
    digest = hashlib.sha256(locks).hexdigest()
    return environment / f"installed-{digest[:16]}"


def constraints(lock: str) -> str:
    """The pins of a lock without their hashes, markers kept: what `pip --constraint` reads."""
    return "".join(f"{pin}\n" for pin in _PINNED.findall(lock))


def _install() -> int:
    started = time.monotonic()
    _say(f"making {ENVIRONMENT.name} with Python {sys.version.split()[0]}")
    is_broken = ENVIRONMENT.exists() and not _works(_python())
    venv.EnvBuilder(with_pip=True, clear=is_broken, symlinks=True).create(ENVIRONMENT)
    for old in ENVIRONMENT.glob("installed-*"):
        old.unlink()
    pins = ENVIRONMENT / "constraints.txt"
    pins.write_text(constraints(LOCK.read_text()))
    _say("installing the locked packages (a few minutes the first time)")
    status = _pip("--require-hashes", "--no-deps", "-r", str(LOCK))
    if status == 0:
        _say(f"installing {TORCH.read_text().strip()}")
        if sys.platform == "linux" and not _has_other_sources():
            _say(_CPU_HINT)
        status = _pip("-r", str(TORCH), "--constraint", str(pins))
    if status == 0 and sys.platform == "linux" and not _has_triton():
        # A build of torch for GPUs brings its own; the kernels' tests need one without it too.
        status = _pip("--require-hashes", "--no-deps", "-r", str(TRITON))
    if status == 0:
        stamp(ENVIRONMENT).touch()
        _say(f"installed in {time.monotonic() - started:.0f} s")
    else:
        _say("the installation failed; what pip says above is the reason")
    return status


def _pip(*arguments: str) -> int:
    """Run pip, leaving out of its output what says that nothing had to be done."""
    command = [str(_python()), "-m", "pip", "install", "--no-input", *arguments]
    environment = os.environ | {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as pip:  # noqa: S603 - fixed words
        assert pip.stdout is not None
        for line in pip.stdout:
            if not line.lstrip().startswith(_IDLE_LINES):
                sys.stderr.write(line)
                sys.stderr.flush()
    return pip.returncode


def _has_other_sources() -> bool:
    """Whether pip may find torch elsewhere than in its default index."""
    return any(
        os.environ.get(name) for name in ("PIP_EXTRA_INDEX_URL", "PIP_INDEX_URL", "PIP_FIND_LINKS")
    )


def _has_triton() -> bool:
    check = "import importlib.util, sys; sys.exit(importlib.util.find_spec('triton') is None)"
    return subprocess.run([str(_python()), "-c", check], check=False).returncode == 0  # noqa: S603 - fixed words


def _python() -> Path:
    return ENVIRONMENT / "bin" / "python"


def _works(python: Path) -> bool:
    check = f"import sys, pip; sys.exit(sys.version_info < {OLDEST})"
    try:
        command = [str(python), "-c", check]
        return subprocess.run(command, check=False, capture_output=True).returncode == 0  # noqa: S603
    except OSError:
        return False


def _say(text: str) -> None:
    sys.stderr.write(f"outrider: {text}\n")
    sys.stderr.flush()


@contextmanager
def _exclusively() -> Iterator[None]:
    folder = ROOT / ".outrider"
    folder.mkdir(exist_ok=True)
    with (folder / "install.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _say("waiting for another installation into the same .venv")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
