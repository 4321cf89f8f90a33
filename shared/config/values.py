"""Text to value and back, and the words for what is allowed.

Types and bounds come from the annotations of a frozen msgspec Struct: a setting is one field, its
help text `Meta(description=...)`; a secret one has `Meta(extra=SECRET)`, and one whose flag may
stand alone, as that of a bool may, `Meta(extra={"bare": what it says then})`.
"""

import math
import re
import typing
from collections.abc import Mapping
from enum import Enum
from pathlib import Path

import msgspec
from msgspec import inspect

SECRET = {"is_secret": True}  # never shown: neither in logs nor in messages
MAX_SHOWN_CHARS = 80  # of a bad value, so that its message stays one line
_HIDDEN = "***"
_CREDENTIALS = re.compile(r"://[^\s]*@")


class Setting(msgspec.Struct, frozen=True):
    """One field of a config Struct, and the names it goes by."""

    name: str
    flag: str  # --max-model-len
    variable: str  # TARGET_WORKER_MAX_MODEL_LEN
    hint: object  # the annotation, bounds included
    type: inspect.Type  # the same without None and metadata
    description: str
    is_secret: bool
    bare: str | None  # what the flag says without a value
    default: object  # msgspec.NODEFAULT when it is required

    def parse(self, text: str) -> object:
        """The value of `text`.

        Raises:
            ValueError: it has not the type or is out of bounds; `allowed(self.type)` says what is.
        """
        raw: object = text
        if isinstance(self.type, inspect.VarTupleType):
            raw = [item.strip() for item in text.split(",") if item.strip()]
        value = msgspec.convert(raw, self.hint, strict=False, dec_hook=_custom)
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError("not finite")
        return value

    def show(self, value: object) -> str:
        """`value` on one line, without secrets, as it would be typed."""
        return _HIDDEN if self.is_secret and value else _shorten(_plain(value))


def settings(config_type: type[msgspec.Struct], *, program: str) -> tuple[Setting, ...]:
    """The settings of a config Struct in its order, those that it inherits last."""
    info = inspect.type_info(config_type)
    assert isinstance(info, inspect.StructType)
    hints = typing.get_type_hints(config_type, include_extras=True)
    own = config_type.__annotations__
    found = []
    for field in sorted(info.fields, key=lambda field: field.name not in own):
        bare, about, extra = _unwrap(field.type)
        default = field.default
        if field.default_factory is not msgspec.NODEFAULT:
            default = field.default_factory()
        found.append(
            Setting(
                name=field.name,
                flag="--" + field.name.replace("_", "-"),
                variable=variable(program, field.name),
                hint=hints[field.name],
                type=bare,
                description=str(about.get("description", "")),
                is_secret=bool(extra.get("is_secret")),
                bare="true" if isinstance(bare, inspect.BoolType) else _text(extra.get("bare")),
                default=default,
            )
        )
    return tuple(found)


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def variable(program: str, name: str) -> str:
    """The environment variable of a setting: STACK_DEMO_PORT is `port` of `stack.demo`."""
    return f"{program}_{name}".upper().replace(".", "_")


def allowed(kind: inspect.Type) -> str:
    """What a value of this type may be, as the end of the sentence "must be …"."""
    match kind:
        case inspect.BoolType():
            return "true or false"
        case inspect.EnumType() | inspect.LiteralType():
            return "one of " + ", ".join(choices(kind))
        case inspect.IntType() | inspect.FloatType():
            noun = "an integer" if isinstance(kind, inspect.IntType) else "a number"
            return f"{noun} {bounds(kind)}".rstrip()
        case inspect.VarTupleType(item_type=item):
            return f"a comma-separated list, each {allowed(_unwrap(item)[0])}"
        case inspect.StrType():
            return _allowed_text(kind)
        case _:
            return "a path"


def _allowed_text(kind: inspect.StrType) -> str:
    length = " that is not empty" if kind.min_length else ""
    if kind.max_length:
        length = f" of {kind.min_length or 0} to {kind.max_length} characters"
    return f"text{length}" + (f" matching {kind.pattern}" if kind.pattern else "")


def choices(kind: inspect.Type) -> tuple[str, ...]:
    """The values of an Enum or a Literal; empty for other types."""
    match kind:
        case inspect.EnumType(cls=enum):
            return tuple(str(member.value) for member in enum)
        case inspect.LiteralType(values=values):
            return tuple(map(str, values))
    return ()


def bounds(kind: inspect.Type) -> str:
    """`from 1 to 16`, `>= 1`, `> 0 and <= 1`, or nothing."""
    if not isinstance(kind, (inspect.IntType, inspect.FloatType)):
        return ""
    if kind.ge is not None and kind.le is not None:
        return f"from {kind.ge} to {kind.le}"
    limits = {">": kind.gt, ">=": kind.ge, "<": kind.lt, "<=": kind.le}
    return " and ".join(f"{sign} {limit}" for sign, limit in limits.items() if limit is not None)


def _unwrap(
    kind: inspect.Type,
) -> tuple[inspect.Type, Mapping[str, object], Mapping[str, object]]:
    about: dict[str, object] = {}
    extra: dict[str, object] = {}
    while True:
        match kind:
            case inspect.Metadata(type=inner):
                about = {**(kind.extra_json_schema or {}), **about}
                extra = {**(kind.extra or {}), **extra}
                kind = inner
            case inspect.UnionType(types=types):
                (kind,) = (one for one in types if not isinstance(one, inspect.NoneType))
            case _:
                return kind, about, extra


def _custom(kind: type, text: object) -> object:
    if kind is Path and isinstance(text, str) and text:
        return Path(text).expanduser()
    raise ValueError("not a path")


def _plain(value: object) -> str:
    match value:
        case None:
            return ""
        case bool():
            return str(value).lower()
        case Enum():
            return str(value.value)
        case tuple():
            return ",".join(map(_plain, value))
    return str(value)


def _shorten(text: str) -> str:
    shown = _CREDENTIALS.sub(f"://{_HIDDEN}@", text)
    shown = "".join(char if char.isprintable() else "?" for char in shown)
    return shown if len(shown) <= MAX_SHOWN_CHARS else shown[: MAX_SHOWN_CHARS - 1] + "…"
