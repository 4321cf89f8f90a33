"""draft_worker/config.py and the command line."""

import pytest

from draft_worker.__main__ import main
from draft_worker.config import Config
from draft_worker.limits import DraftLimits
from shared.config.flags import load


def test_the_defaults_are_the_tuned_limits() -> None:
    """Flags and limits say the same."""
    assert Config().limits == DraftLimits()


def test_flags_reach_the_limits() -> None:
    """One to one, by name."""
    argv = ["--max-ahead=3", "--num-branches=0", "--max-num-seqs", "5", "--chunk=1"]
    config = load(Config, prog="draft_worker", description="", argv=argv, env={})
    assert config.limits == DraftLimits(max_ahead=3, num_branches=0, max_num_seqs=5, chunk=1)


def test_help_fits_a_screen(capsys: pytest.CaptureFixture[str]) -> None:
    """24 lines of 100 columns."""
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 100


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--max-ahead=0"], "--max-ahead"),
        (["--drafter=magic"], "model, ngram"),
        (["--speed=9"], "--speed"),
    ],
    ids=["range", "choice", "unknown"],
)
def test_a_bad_value_exits_2_and_is_named(
    argv: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line says what was wrong and what is allowed."""
    with pytest.raises(SystemExit) as ended:
        main(argv)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err
