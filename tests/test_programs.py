"""What every program promises an operator, whatever it does."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from shared.config.flags import load
from tests.programs import PROGRAMS, config_of

ROOT = Path(__file__).parents[1]


def run(program: str, *flags: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", program, *flags],
        cwd=ROOT, env={**os.environ, **variables}, capture_output=True, text=True, check=False,
        timeout=60,
    )  # fmt: skip


def refused(program: str, *flags: str, **variables: str) -> int:
    """The status of a program that does not start for its settings."""
    with pytest.raises(SystemExit) as exit_info:
        load(config_of(program), prog=program, description="", argv=flags, env=variables)
    assert isinstance(exit_info.value.code, int)
    return exit_info.value.code


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_fits_a_screen(program: str, capsys: pytest.CaptureFixture[str]) -> None:
    """24 lines of 100 columns, with the name of a variable, and status 0."""
    assert refused(program, "--help") == 0
    screen = capsys.readouterr().out
    assert len(screen.splitlines()) <= 24
    assert max(map(len, screen.splitlines())) <= 100
    assert program.upper().replace(".", "_") + "_" in screen


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_bad_variable_is_one_line_and_status_two(
    program: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The variable, its value and what is allowed are named."""
    variable = program.upper().replace(".", "_") + "_LOG_LEVEL"
    assert refused(program, **{variable: "loud"}) == 2
    line = f"{program}: {variable} is 'loud': must be one of debug, info, warning, error\n"
    assert capsys.readouterr().err == line


@pytest.mark.slow
@pytest.mark.parametrize("program", PROGRAMS)
def test_an_unknown_flag_is_one_line_and_status_two(program: str) -> None:
    """As a process of its own: nothing starts, the flag is named."""
    done = run(program, "--no-such-flag", "1")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith(f"{program}: unknown flag --no-such-flag")


@pytest.mark.slow
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
