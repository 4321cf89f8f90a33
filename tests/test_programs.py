"""What every program promises an operator, whatever it does."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.programs import ROLES

ROOT = Path(__file__).parents[1]
PROGRAMS = (*ROLES, "stack", "stack.demo", "stack.health")


def run(program: str, *flags: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", program, *flags],
        cwd=ROOT, env={**os.environ, **variables}, capture_output=True, text=True, check=False,
        timeout=60,
    )  # fmt: skip


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_fits_a_screen(program: str) -> None:
    """24 lines of 100 columns, with the name of a variable, and status 0."""
    done = run(program, "--help")
    lines = done.stdout.splitlines()
    assert (done.returncode, done.stderr) == (0, "")
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 100
    assert program.upper().replace(".", "_") + "_" in done.stdout


@pytest.mark.parametrize("program", PROGRAMS)
def test_an_unknown_flag_is_one_line_and_status_two(program: str) -> None:
    """Nothing starts; the flag is named."""
    done = run(program, "--no-such-flag", "1")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "unknown flag --no-such-flag" in done.stderr


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_bad_variable_is_one_line_and_status_two(program: str) -> None:
    """The variable, its value and what is allowed are named."""
    name = program.upper().replace(".", "_") + "_LOG_LEVEL"
    done = run(program, **{name: "loud"})
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert f"{name} is 'loud': must be one of debug, info, warning, error" in done.stderr


@pytest.mark.parametrize(
    ("program", "flag"),
    [
        ("target_worker", "--model"),
        ("draft_worker", "--model"),
        ("stack", "--target"),
        ("stack.demo", "--draft"),
    ],
)
def test_a_model_that_is_not_there_is_one_line_and_status_two(
    program: str, flag: str, tmp_path: Path
) -> None:
    """Found before anything is started, without a traceback."""
    done = run(program, flag, str(tmp_path / "nothing"))
    assert (done.returncode, done.stdout) == (2, "")
    complaint = done.stderr.splitlines()[-1]
    assert complaint.startswith(f"{program}: ")
    assert str(tmp_path / "nothing") in complaint
    assert "Traceback" not in done.stderr
