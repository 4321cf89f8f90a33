"""Typed access to other people's JSON."""

from pathlib import Path
from typing import Any

import pytest

from shared.common.errors import ConfigError
from shared.engine import fields as fields_module
from shared.engine.fields import Fields

PATH = Path("model/config.json")


def fields(**values: object) -> Fields:
    """An object as read from PATH."""
    return Fields(PATH, values)


def test_values_come_with_their_types() -> None:
    """Present values, and defaults where absent or null."""
    own = fields(layers=3, eps=1e-6, tied=True, act="silu", none=None, rope={"factor": 2})
    assert own.count("layers") == 3
    assert own.count("none", 7) == own.count("absent", 7) == 7
    assert own.number("eps") == 1e-6
    assert own.number("layers") == 3.0
    assert own.number("none", 0.5) == 0.5
    assert own.flag("tied", default=False) is True
    assert own.flag("none", default=True) is True
    assert own.choice("act", ("silu", "gelu")) == "silu"
    assert own.choice("absent", ("silu", "gelu"), "gelu") == "gelu"
    assert own.nested("rope").number("factor") == 2.0
    assert not own.nested("none").values
    assert own.is_set("layers")
    assert not own.is_set("none")
    assert not own.is_set("absent")


@pytest.mark.parametrize(
    ("method", "value", "message"),
    [
        ("count", 0, "key is 0; allowed: a whole number of at least 1"),
        ("count", True, "key is True; allowed: a whole number"),
        ("count", 2.0, "key is 2.0; allowed: a whole number"),
        ("count", None, "key is None; allowed: a whole number"),
        ("number", "1", "key is '1'; allowed: a number above 0"),
        ("number", float("nan"), "key is nan; allowed: a number above 0"),
        ("number", float("inf"), "key is inf; allowed: a number above 0"),
        ("number", False, "key is False; allowed: a number above 0"),
        ("nested", [1], r"key is \[1\]; allowed: an object or null"),
    ],
)
def test_a_wrong_value_is_named(method: str, value: object, message: str) -> None:
    """File, key, value and what is allowed."""
    with pytest.raises(ConfigError, match=message) as caught:
        getattr(fields(key=value), method)("key")
    assert str(caught.value).startswith("model/config.json: ")


def test_wrong_flags_and_choices_are_named() -> None:
    """The two that take more arguments."""
    with pytest.raises(ConfigError, match="key is 1; allowed: true or false"):
        fields(key=1).flag("key", default=True)
    with pytest.raises(ConfigError, match="key is 'gelu'; allowed: silu, relu"):
        fields(key="gelu").choice("key", ("silu", "relu"))
    unhashable: Any = {"a": []}
    with pytest.raises(ConfigError, match="allowed: silu"):
        fields(key=unhashable).choice("key", ("silu",))


def test_nested_keys_are_named_in_full() -> None:
    """A complaint about an inner value leads with the outer key."""
    with pytest.raises(ConfigError, match=r"outer\.inner\.key is 0"):
        fields(outer={"inner": {"key": 0}}).nested("outer").nested("inner").count("key")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[1]", "must hold a JSON object"),
        (b"{", "is not JSON"),
        (b"\xff", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (None, "cannot be read"),
    ],
    ids=["list", "cut", "no-text", "deep", "missing"],
)
def test_an_unreadable_file_is_named(content: bytes | None, message: str, tmp_path: Path) -> None:
    """Whatever is in the file, the operator learns which one it is."""
    path = tmp_path / "config.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=message) as caught:
        Fields.read(path)
    assert str(path) in str(caught.value)


def test_a_huge_file_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A size limit comes before parsing."""
    monkeypatch.setattr(fields_module, "MAX_JSON_BYTES", 10)
    path = tmp_path / "config.json"
    path.write_text('{"a": 1, "b": 2}')
    with pytest.raises(ConfigError, match="larger than 10 bytes"):
        Fields.read(path)
