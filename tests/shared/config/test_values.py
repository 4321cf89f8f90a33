from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

import pytest
from msgspec import Meta, Struct

from shared.config.values import MAX_SHOWN_CHARS, Setting, allowed, settings


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


class Everything(Struct, frozen=True):
    integer: int = 0
    unit: Annotated[float, Meta(gt=0, le=3)] = 1.0  # typing shares equal ones, be they 1 or 1.0
    name: Annotated[str, Meta(min_length=1)] = "x"
    word: Annotated[str, Meta(max_length=3)] = "x"
    colour: Colour | None = None
    size: Literal[1, 2] = 1
    paths: tuple[Path, ...] = ()


def setting(name: str) -> Setting:
    return next(one for one in settings(Everything, program="p") if one.name == name)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("integer", "an integer"),
        ("unit", "a number > 0 and <= 3"),
        ("name", "text that is not empty"),
        ("word", "text of 0 to 3 characters"),
        ("colour", "one of red, blue"),
        ("size", "one of 1, 2"),
        ("paths", "a comma-separated list, each a path"),
    ],
)
def test_what_is_allowed_is_said_in_words(name: str, words: str) -> None:
    """The words complete "must be …"."""
    assert allowed(setting(name).type) == words


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("integer", "-3", -3),
        ("unit", "0.5", 0.5),
        ("colour", "blue", Colour.BLUE),
        ("paths", "a, b,", (Path("a"), Path("b"))),
        ("paths", "", ()),
    ],
)
def test_text_becomes_a_value(name: str, text: str, value: object) -> None:
    """By the annotation, never by the looks of the text."""
    assert setting(name).parse(text) == value


def test_a_value_is_shown_as_it_would_be_typed() -> None:
    """Lists with commas, choices by their value, nothing for None."""
    assert setting("paths").show((Path("a"), Path("b"))) == "a,b"
    assert setting("colour").show(Colour.RED) == "red"
    assert setting("colour").show(None) == ""


def test_a_long_value_is_cut() -> None:
    """A bad value cannot make its message longer than a line."""
    assert len(setting("name").show("x" * 10_000)) == MAX_SHOWN_CHARS


def test_an_empty_path_is_refused() -> None:
    """An empty path would silently mean the current directory."""

    class Model(Struct, frozen=True):
        directory: Path = Path("m")

    (only,) = settings(Model, program="p")
    with pytest.raises(ValueError, match="path"):
        only.parse("")
