import subprocess
import sys
from pathlib import Path

import pytest

from stack import install

ROOT = Path(__file__).parents[2]


def test_constraints_are_the_pins_of_the_lock_without_hashes() -> None:
    """Markers stay, so that each platform is held to its own versions."""
    first = "a==1.0 \\\n    --hash=sha256:00 \\\n    --hash=sha256:11\n"
    second = "b-c==2 ; x < '3' \\\n    --hash=sha256:22\n"
    assert install.constraints(first + second) == "a==1.0\nb-c==2 ; x < '3'\n"


def test_every_pin_of_the_lock_becomes_a_constraint() -> None:
    """None is lost, or torch could bring another version."""
    lock = install.LOCK.read_text()
    assert install.constraints(lock).count("\n") == lock.count("==") - lock.count(" == ")


def test_an_up_to_date_environment_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second `make` costs nothing and touches nothing."""
    monkeypatch.setattr(install, "ENVIRONMENT", tmp_path)
    monkeypatch.setattr(install, "_install", lambda: pytest.fail("must not install"))
    install.stamp(tmp_path).touch()
    assert install.main() == 0


def test_another_lock_needs_another_installation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stamp is named after the contents of the lock."""
    before = install.stamp(tmp_path)
    other = tmp_path / "torch.txt"
    other.write_text("torch==0\n")
    monkeypatch.setattr(install, "TORCH", other)
    assert install.stamp(tmp_path) != before


def test_make_says_what_it_needs_when_no_interpreter_fits() -> None:
    """One line that names the variable to set."""
    done = subprocess.run(
        ["make", "setup", "PYTHON=/nonexistent/python"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert "needs Python >= 3.11" in done.stderr
    assert "set PYTHON=" in done.stderr


def test_the_installer_needs_nothing_but_the_standard_library() -> None:
    """It runs before anything is installed."""
    code = "import sys; sys.path.insert(0, 'stack'); import install"
    subprocess.run([sys.executable, "-I", "-S", "-c", code], cwd=ROOT, check=True)
