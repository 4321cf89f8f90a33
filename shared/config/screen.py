"""The `--help` of a program: one line a setting, so that all of it fits a screen of 24 x 100."""

from collections.abc import Sequence

import msgspec
from msgspec import inspect

from shared.config import values
from shared.config.values import Setting

_WORDS = {
    inspect.IntType: "N",
    inspect.FloatType: "NUM",
    inspect.BoolType: "BOOL",
    inspect.VarTupleType: "LIST",
    inspect.CustomType: "PATH",
}


def help_screen(prog: str, description: str, found: Sequence[Setting]) -> str:
    """The whole screen, ending with a newline. Each description should fit beside its flag."""
    names = [f"{setting.flag} {_WORDS.get(type(setting.type), 'TEXT')}" for setting in found]
    width = max(map(len, names), default=0) + 2
    lines = [
        f"  {name:<{width}}{_meaning(setting)}" for name, setting in zip(names, found, strict=True)
    ]
    example = f": {found[0].flag} is {found[0].variable}" if found else ""
    notes = f"Each flag has an environment variable{example}. A flag beats it."
    return "\n".join([f"python -m {prog}: {description}", "", *lines, "", notes, ""])


def _meaning(setting: Setting) -> str:
    bounds = values.bounds(setting.type).removeprefix("from ")
    what = "|".join(values.choices(setting.type)) or bounds
    text = f"{setting.description} ({what})" if what else setting.description
    if setting.default is msgspec.NODEFAULT:
        return f"{text} [required]"
    shown = setting.show(setting.default)
    return f"{text} [{shown}]" if shown else text
