from pathlib import Path
from typing import Annotated, Literal

import msgspec
import pytest
from msgspec import Meta
from structlog.testing import capture_logs

from shared.common.errors import ConfigError
from shared.config.common import CommonConfig, LogLevel
from shared.config.flags import effective, exits_on_config_error, load, log_config
from shared.config.values import SECRET


class ExampleConfig(CommonConfig, frozen=True, kw_only=True):
    model: Annotated[Path, Meta(description="directory of the model")]
    max_model_len: Annotated[int, Meta(ge=16, le=4_096, description="longest, in tokens")] = 1_024
    drafter: Annotated[Literal["model", "ngram"], Meta(description="who guesses")] = "model"
    grace_s: Annotated[float, Meta(ge=0, description="longest wait")] = 0.5
    num_blocks: Annotated[int, Meta(ge=1, description="blocks")] | None = None
    speculation: Annotated[bool, Meta(description="guess at all")] = True
    api_keys: Annotated[tuple[str, ...], Meta(description="may call", extra=SECRET)] = ()

    def __post_init__(self) -> None:
        if self.num_blocks is not None and self.num_blocks * 16 < self.max_model_len:
            raise ValueError("--num-blocks must hold --max-model-len tokens")


def load_example(*argv: str, env: dict[str, str] | None = None) -> ExampleConfig:
    return load(
        ExampleConfig, prog="target_worker", description="an example", argv=argv, env=env or {}
    )


def complaint(
    capsys: pytest.CaptureFixture[str], *argv: str, env: dict[str, str] | None = None
) -> str:
    """The one line on stderr of a program that exits with 2."""
    with pytest.raises(SystemExit) as exit_info:
        load_example(*argv, env=env)
    out, err = capsys.readouterr()
    assert (exit_info.value.code, out, err.count("\n")) == (2, "", 1)
    return err


def test_flags_beat_variables_beat_defaults() -> None:
    """The nearest word counts."""
    env = {"TARGET_WORKER_MODEL": "a", "TARGET_WORKER_MAX_MODEL_LEN": "64"}
    config = load_example("--model", "b", env=env)
    assert (config.model, config.max_model_len, config.grace_s) == (Path("b"), 64, 0.5)


def test_an_empty_variable_counts_as_unset() -> None:
    """Compose passes variables that nobody set as empty text."""
    config = load_example("--model", "a", env={"TARGET_WORKER_MAX_MODEL_LEN": ""})
    assert config.max_model_len == 1_024


def test_each_type_is_read_from_text() -> None:
    """Numbers, choices, lists, paths and switches arrive with the type of their annotation."""
    config = load_example(
        "--model=~/m", "--drafter", "ngram", "--grace-s=0", "--num-blocks", "512",
        "--api-keys", "a, b", "--log-level", "debug", "--speculation=false",
    )  # fmt: skip
    assert config.model == Path.home() / "m"
    assert (config.drafter, config.grace_s, config.num_blocks) == ("ngram", 0.0, 512)
    assert (config.api_keys, config.log_level) == (("a", "b"), LogLevel.DEBUG)
    assert config.speculation is False


def test_a_bare_switch_means_true() -> None:
    """`--speculation` alone turns it on, whatever the variable says."""
    env = {"TARGET_WORKER_SPECULATION": "false"}
    assert load_example("--model", "m", "--speculation", env=env).speculation is True


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (("--max-model-len", "8"), "--max-model-len is '8': must be an integer from 16 to 4096"),
        (("--max-model-len", "x"), "--max-model-len is 'x': must be an integer from 16 to 4096"),
        (("--grace-s", "nan"), "--grace-s is 'nan': must be a number >= 0"),
        (("--grace-s", "inf"), "--grace-s is 'inf': must be a number >= 0"),
        (("--drafter", "oracle"), "--drafter is 'oracle': must be one of model, ngram"),
        (("--log-level", "loud"), "--log-level is 'loud': must be one of debug, info, warning,"),
        (("--speculation", "perhaps"), "--speculation is 'perhaps': must be true or false"),
        (("--num-blocks",), "--num-blocks needs a value: must be an integer >= 1"),
        (("--num-blocks", "2"), "--num-blocks must hold --max-model-len tokens"),
        (("--redis-url", "localhost"), "--redis-url is 'localhost': must be text"),
        (("--max-modl-len", "8"), "unknown flag --max-modl-len (did you mean --max-model-len?)"),
        (("--nonsense",), "unknown flag --nonsense: must be one of --model, --max-model-len"),
        (("left over",), "unexpected argument 'left over'"),
        (("--drafter", "a\nb"), "--drafter is 'a?b': must be"),
    ],
    ids=lambda value: "-".join(value)[:24].replace("\n", "") if isinstance(value, tuple) else "",
)
def test_a_bad_flag_is_named_with_what_is_allowed(
    capsys: pytest.CaptureFixture[str], argv: tuple[str, ...], expected: str
) -> None:
    """One line: the program, the flag, the value, what it may be."""
    assert complaint(capsys, "--model", "m", *argv).startswith(f"target_worker: {expected}")


def test_a_bad_variable_is_named_with_what_is_allowed(capsys: pytest.CaptureFixture[str]) -> None:
    """Whoever set the variable is told its name, not the flag's."""
    line = complaint(capsys, "--model", "m", env={"TARGET_WORKER_MAX_MODEL_LEN": "0"})
    expected = "TARGET_WORKER_MAX_MODEL_LEN is '0': must be an integer from 16 to 4096"
    assert line == f"target_worker: {expected}\n"


def test_a_missing_required_flag_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    """Both ways to give it are named."""
    expected = "--model (or TARGET_WORKER_MODEL) is required: a path"
    assert complaint(capsys) == f"target_worker: {expected}\n"


def test_passwords_and_secrets_are_never_shown(capsys: pytest.CaptureFixture[str]) -> None:
    """Neither in the effective configuration nor in complaints."""
    url = "redis://user:hush@host/0"
    shown = effective(load_example("--model", "m", "--redis-url", url, "--api-keys", "hush"))
    assert (shown["redis_url"], shown["api_keys"]) == ("redis://***@host/0", "***")
    assert "hush" not in complaint(capsys, "--model", "m", "--redis-url", "http://u:hush@host")


def test_help_shows_every_flag_its_default_and_the_variables(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Help is one screen of 24 x 100 and a success."""
    with pytest.raises(SystemExit) as exit_info:
        load_example("--help")
    screen = capsys.readouterr().out
    assert exit_info.value.code == 0
    assert len(screen.splitlines()) <= 24
    assert max(map(len, screen.splitlines())) <= 100
    assert "who guesses (model|ngram) [model]" in screen
    assert "TARGET_WORKER_MODEL" in screen
    assert all(f"--{name.replace('_', '-')} " in screen for name in ExampleConfig.__struct_fields__)


def test_the_effective_config_is_logged_once_with_strangers() -> None:
    """A misspelt variable is pointed out without stopping the program."""
    config = load_example("--model", "m")
    with capture_logs() as logs:
        log_config(config, prog="target_worker", env={"TARGET_WORKER_MODLE": "x", "HOME": "/"})
    assert [entry["event"] for entry in logs] == ["effective_config", "unknown_variable"]
    assert logs[0]["max_model_len"] == "1024"
    assert logs[1]["variable"] == "TARGET_WORKER_MODLE"


def test_a_config_error_of_the_program_itself_exits_with_two(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What only the program can check is refused in the same words."""
    with pytest.raises(SystemExit) as exit_info, exits_on_config_error("gateway"):
        raise ConfigError("--model is 'x': must be a directory\nwith config.json")
    assert exit_info.value.code == 2
    assert (
        capsys.readouterr().err == "gateway: --model is 'x': must be a directory with config.json\n"
    )


def test_a_struct_without_common_settings_works() -> None:
    """Any frozen Struct will do."""

    class Small(msgspec.Struct, frozen=True):
        port: Annotated[int, Meta(ge=0, le=65_535, description="where to listen")] = 8_000

    config = load(Small, prog="x", description="small", argv=["--port", "80"], env={})
    assert config == Small(port=80)
