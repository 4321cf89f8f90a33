"""docs/design.md: its map of the modules is the tree."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "design.md").read_text("utf-8")
MAP = PAGE.partition("\n## Modules\n")[2]
EVERYWHERE = {"__init__", "__main__", "config"}  # the page says of these once what they are


def modules_on_the_page() -> dict[str, list[str]]:
    """Package -> the modules that its list names, as often as it does."""
    found: dict[str, list[str]] = {}
    for section in MAP.split("\n### ")[1:]:
        package, _, lines = section.partition("\n")
        heads = re.findall(r"^- ((?:`\w+`(?:, )?)+): \S", lines, re.MULTILINE)
        assert len(heads) == len(lines.strip().splitlines()), f"a line of {package} names no module"
        found[package] = [name for head in heads for name in re.findall(r"\w+", head)]
    return found


ON_THE_PAGE = modules_on_the_page()


def test_every_package_is_on_the_page() -> None:
    """A new package gets its list."""
    packages = {
        str(path.parent.relative_to(ROOT))
        for top in ("shared", "kernels", "gateway", "draft_worker", "target_worker", "stack")
        for path in (ROOT / top).rglob("*.py")
    }
    assert packages - {"shared"} | {"bench"} == set(ON_THE_PAGE)


@pytest.mark.parametrize("package", ON_THE_PAGE)
def test_every_module_is_on_the_page_once(package: str) -> None:
    """A new module gets its line, and one that is gone loses it."""
    modules = {path.stem for path in (ROOT / package).glob("*.py")}
    named = ON_THE_PAGE[package]
    assert sorted(set(named) - EVERYWHERE) == sorted(modules - EVERYWHERE)
    assert len(named) == len(set(named))


def test_the_named_files_and_pages_are_there() -> None:
    """Every path in the text leads somewhere."""
    paths = re.findall(r"`((?:\w+/)+\w+\.\w+)`", PAGE) + re.findall(r"\]\((\w+\.md)\)", PAGE)
    places = (ROOT, ROOT / "docs", ROOT / "shared" / "bus")
    assert paths
    for path in paths:
        assert any((place / path).is_file() for place in places), path
