"""A program's settings: flags beat environment variables beat defaults; a wrong one exits with 2.

`load(Config, prog="target_worker", …)` turns each field of a frozen msgspec Struct into a flag
(`--max-model-len`) and a variable (`TARGET_WORKER_MAX_MODEL_LEN`; an empty one counts as unset).
Whoever gave a bad value reads one line with the name, the value and what is allowed.
"""

import argparse
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from typing import NoReturn, TypeVar

import msgspec
import structlog

from shared.common.errors import ConfigError
from shared.config import values
from shared.config.screen import help_screen
from shared.config.values import Setting

Config = TypeVar("Config", bound=msgspec.Struct)

EXIT_CONFIG = 2  # what argparse and shells use for wrong usage


def load(
    config_type: type[Config],
    *,
    prog: str,
    description: str,
    argv: Sequence[str] | None = None,
    env: Mapping[str, str] | None = None,
) -> Config:
    """The settings of this run.

    Args:
        config_type: a frozen Struct; a field without a default is required.
        prog: the module to run (`target_worker`); upper-cased, it is the prefix of the variables.
        description: one line, the first of `--help`.
        argv: instead of the process's arguments, without the program's name.
        env: instead of the process's environment.
    Raises:
        SystemExit: 0 after `--help`; 2 after one line on stderr.
    """
    found = values.settings(config_type, program=prog)
    with exits_on_config_error(prog):
        texts = _Parser(prog, description, found).texts(sys.argv[1:] if argv is None else argv)
        return _build(config_type, found, texts, os.environ if env is None else env)


@contextmanager
def exits_on_config_error(prog: str) -> Iterator[None]:
    """Turn a ConfigError into one line on stderr and status 2: for `main` functions."""
    try:
        yield
    except ConfigError as error:
        line = " ".join(str(error).split())
        sys.stderr.write(f"{prog}: {line}\n")
        raise SystemExit(EXIT_CONFIG) from error


def effective(config: msgspec.Struct) -> dict[str, str]:
    """Every setting as text, secrets and the passwords of URLs hidden."""
    found = values.settings(type(config), program="")
    return {setting.name: setting.show(getattr(config, setting.name)) for setting in found}


def log_config(config: msgspec.Struct, *, prog: str, env: Mapping[str, str] | None = None) -> None:
    """Log what this run uses, once at start, and variables that look like ours but are not.

    The latter are no error: orchestrators inject names such as GATEWAY_SERVICE_HOST.
    """
    log = structlog.get_logger(prog)
    log.info("effective_config", **effective(config))
    known = {setting.variable for setting in values.settings(type(config), program=prog)}
    given = os.environ if env is None else env
    for name in sorted(given):
        if name.startswith(values.variable(prog, "")) and name not in known:
            log.warning("unknown_variable", variable=name)


def _build(
    config_type: type[Config],
    found: Sequence[Setting],
    texts: Mapping[str, str],
    env: Mapping[str, str],
) -> Config:
    chosen: dict[str, object] = {}
    for setting in found:
        if setting.name in texts:
            chosen[setting.name] = _value(setting, setting.flag, texts[setting.name])
        elif env.get(setting.variable):
            chosen[setting.name] = _value(setting, setting.variable, env[setting.variable])
    for setting in found:
        if setting.name not in chosen and setting.default is msgspec.NODEFAULT:
            must = values.allowed(setting.type)
            raise ConfigError(f"{setting.flag} (or {setting.variable}) is required: {must}")
    try:
        return config_type(**chosen)
    except ValueError as error:  # the Struct's own __post_init__: settings that do not go together
        raise ConfigError(str(error)) from error


def _value(setting: Setting, source: str, text: str) -> object:
    try:
        return setting.parse(text)
    except ValueError:
        must = values.allowed(setting.type)
        raise ConfigError(f"{source} is {setting.show(text)!r}: must be {must}") from None


class _Parser(argparse.ArgumentParser):
    """argparse splits the arguments; help and complaints are ours."""

    def __init__(self, prog: str, description: str, found: Sequence[Setting]) -> None:
        super().__init__(prog=prog, add_help=False, allow_abbrev=False)
        self._help = help_screen(prog, description, found)
        self._found = found
        self.add_argument("-h", "--help", action="help")
        for setting in found:
            self.add_argument(
                setting.flag,
                dest=setting.name,
                nargs="?",
                const=setting.bare,
                default=argparse.SUPPRESS,
            )

    def texts(self, argv: Sequence[str]) -> dict[str, str]:
        """The text of each flag given, by the name of its field; of one given twice, the last.

        Raises:
            ConfigError: a flag that is not ours, or one without its value.
        """
        given, rest = self.parse_known_args(list(argv))
        if rest:
            raise ConfigError(self._unknown(rest[0]))
        for setting in self._found:
            if getattr(given, setting.name, "") is None:
                must = values.allowed(setting.type)
                raise ConfigError(f"{setting.flag} needs a value: must be {must}")
        return {name: str(text) for name, text in vars(given).items()}

    def format_help(self) -> str:
        """Replaces argparse's screen, which needs three lines for some flags."""
        return self._help

    def error(self, message: str) -> NoReturn:
        """Replaces usage and message by the message."""
        raise ConfigError(message)

    def _unknown(self, argument: str) -> str:
        flag = argument.partition("=")[0]
        flags = [setting.flag for setting in self._found]
        close = get_close_matches(flag, flags, n=1)
        word = f"unknown flag {flag}" if flag.startswith("-") else f"unexpected argument {flag!r}"
        return (
            word
            + (f" (did you mean {close[0]}?)" if close else "")
            + f": must be one of {', '.join(flags)}"
        )
