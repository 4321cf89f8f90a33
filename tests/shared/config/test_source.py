from pathlib import Path

import pytest

from shared.common.errors import ConfigError
from shared.config.source import HubId, absolute, find_source, served_name

NOT_THERE = [
    "nothing", "./org/name", "/org/name", "~/org/name", "../org", "org/name/more", "org/", "/name",
    "org/..", "org/na..me", "a..b/name", ".org/name", "org/name.", "org/na--me", "org/name.git@v1",
    "org/name.git", "org/name@", "org/name@../x", "org/name@a/../b", "org/name@/x", "org/na me",
    "org/name@-x", "https://hub/org/name", "org/naïve", "org/name\n", "org/" + "n" * 97,
    "org/" + "n" * 300, "~nobody-at-all/name",
]  # fmt: skip


@pytest.mark.parametrize(
    ("value", "revision"),
    [
        ("org/name", None),
        ("o/n", None),
        ("Meta-Llama_3/Llama-3.1-8B.v2_", None),
        ("org/name@v1.0", "v1.0"),
        ("org/name@refs/pr/7", "refs/pr/7"),
        (
            "org/name@0e9e39f249a16976918f6564b8830bc894c89659",
            "0e9e39f249a16976918f6564b8830bc894c89659",
        ),
    ],
)
def test_org_and_name_are_a_hub_id(value: str, revision: str | None) -> None:
    """With a branch, tag or commit, if there is one."""
    source = find_source(value, flag="--model")
    repo_id = value.partition("@")[0]
    assert source == HubId(repo_id, revision)
    assert str(source) == value
    assert served_name(value) == repo_id.partition("/")[2]


@pytest.mark.parametrize("value", NOT_THERE)
def test_anything_else_is_refused_with_what_is_allowed(value: str) -> None:
    """No hub is asked: neither for paths that are not there nor for names with `..`."""
    with pytest.raises(ConfigError, match="must be a directory that exists, or a hub id") as error:
        find_source(value, flag="--target")
    assert str(error.value).startswith(f"--target is '{value}'")


def test_a_directory_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is here is meant, even if a hub may have one of that name."""
    (tmp_path / "org" / "name").mkdir(parents=True)
    (tmp_path / "org" / "link").symlink_to("name")
    (tmp_path / "org" / "file").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_source("org/name", flag="--model") == Path("org/name")
    assert find_source("~/org/name", flag="--model") == tmp_path / "org" / "name"
    assert (served_name("org/link"), served_name("~/org/name")) == ("name", "name")
    with pytest.raises(ConfigError):
        find_source("org/file", flag="--model")


def test_a_child_elsewhere_gets_the_same_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A directory by its full path, a hub id unchanged."""
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path)
    assert absolute("model") == str(tmp_path / "model")
    assert absolute("org/name@v1") == "org/name@v1"
