from pathlib import Path

import pytest

from shared.common.errors import ConfigError
from stack.config import StackConfig, check_models


def test_a_directory_without_a_model_is_refused(tmp_path: Path) -> None:
    """Before anything starts, with the flag to change."""
    with pytest.raises(ConfigError, match=r"--target is .* must be a directory with config.json"):
        check_models(StackConfig(target=str(tmp_path)))


def test_the_draft_model_is_not_needed_without_draft_workers(tmp_path: Path) -> None:
    """Plain decoding asks for one model only."""
    (tmp_path / "config.json").touch()
    check_models(StackConfig(target=str(tmp_path), draft="/nowhere", draft_workers=0))
    with pytest.raises(ConfigError, match=r"--draft is"):
        check_models(StackConfig(target=str(tmp_path), draft="/nowhere"))


def test_a_hub_id_is_left_to_the_worker() -> None:
    """A path that is not there is refused at once."""
    check_models(StackConfig(target="org/name", draft="org/name-draft@v1"))
    with pytest.raises(ConfigError, match=r"--draft is './org/name': must be a directory that"):
        check_models(StackConfig(target="org/name", draft="./org/name"))
