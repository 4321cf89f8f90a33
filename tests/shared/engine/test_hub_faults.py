"""A model that cannot be fetched: one line that says who can change it, and never half a model."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.engine.hub import Part
from tests.hub import COMMIT, Hub, Repository
from tests.hub_machine import Machine
from tests.tiny_models import save_llama

NAME = "org/tiny"
WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model in one file."""
    return save_llama(tmp_path_factory.mktemp("hub") / "model")


@pytest.fixture
def machine(tmp_path: Path, model: Path) -> Iterator[Machine]:
    """A cache that is empty, and a hub with the model."""
    with Hub({NAME: Repository.of(model)}) as hub:
        yield Machine(tmp_path / "home", hub)


@pytest.mark.parametrize(
    ("refusal", "reason"),
    [
        ((404, "RepoNotFound"), "must be a directory that exists, or a model that 127.0.0.1 has"),
        ((401, ""), "127.0.0.1 refuses it"),
        ((401, "GatedRepo"), "127.0.0.1 asks for permission; HF_TOKEN must be of who has it"),
        ((403, "GatedRepo"), "127.0.0.1 asks for permission; HF_TOKEN must be of who has it"),
        ((403, ""), "127.0.0.1 refuses it"),
        ((404, "RevisionNotFound"), "no such branch, tag or commit"),
    ],
)
def test_what_the_operator_can_change_is_one_line_and_status_two(
    refusal: tuple[int, str], reason: str, machine: Machine, model: Path
) -> None:
    """It names the flag, the value and what is allowed."""
    machine.hub.repositories[NAME] = Repository.of(model)
    machine.hub.repositories[NAME].refusal = refusal
    ended = machine.run(f"{NAME}@v2")
    line = ended.log.splitlines()[-1]
    assert (ended.status, ended.out) == (2, "")
    assert line.startswith(f"test: --model is '{NAME}@v2': ")
    assert reason in line
    assert "Traceback" not in ended.log


def test_a_repository_without_a_model_is_refused(machine: Machine) -> None:
    """Before anything large is fetched."""
    machine.hub.repositories[NAME] = Repository({WEIGHTS: b"tensors", "README.md": b"text"})
    ended = machine.run(NAME)
    assert (ended.status, machine.hub.downloads) == (2, set())
    assert "must be a model with config.json, it has none" in ended.log


def test_offline_without_a_copy_is_the_operators_to_change(machine: Machine) -> None:
    """The variable is named, and nothing is asked of the hub."""
    ended = machine.run(NAME, HF_HUB_OFFLINE="1")
    assert (ended.status, machine.hub.requests) == (2, [])
    assert f"HF_HUB_OFFLINE is set, so it must be whole in the cache ({machine.home}" in ended.log


@pytest.mark.parametrize(
    ("name", "value"), [("HF_HUB_ETAG_TIMEOUT", "soon"), ("HF_ENDPOINT", "http://[")]
)
def test_a_variable_of_the_library_that_cannot_be_read_is_the_operators_to_change(
    name: str, value: str, machine: Machine
) -> None:
    """It fails while it is imported."""
    ended = machine.run(NAME, Part.WHOLE, **{name: value})
    assert (ended.status, "Traceback" in ended.log) == (2, False)
    assert "HF_ variables must be as huggingface_hub reads them" in ended.log


def test_a_cache_that_cannot_be_written_is_named(machine: Machine) -> None:
    """Here it is a file."""
    machine.home.write_text("")
    ended = machine.run(NAME)
    assert ended.status == 2
    assert f"--model is '{NAME}': cannot be kept in the cache ({machine.home}" in ended.log


def test_what_is_no_hub_is_named(machine: Machine, model: Path) -> None:
    """A portal that answers everything with a page, say."""
    machine.hub.repositories[NAME] = Repository.of(model)
    machine.hub.repositories[NAME].page = b"<html>"
    ended = machine.run(NAME)
    assert (ended.status, "what 127.0.0.1 answers is no model" in ended.log) == (2, True)


@pytest.mark.parametrize("is_there", [True, False])
def test_a_hub_that_is_away_is_nobodys_fault(
    is_there: bool,  # noqa: FBT001 - a case
    machine: Machine,
    model: Path,
) -> None:
    """Status 1: whoever supervises the worker starts it again."""
    if is_there:
        machine.hub.repositories[NAME] = Repository.of(model)
        machine.hub.repositories[NAME].refusal = (500, "")
    else:
        machine.hub.close()
    ended = machine.run(NAME)
    assert ended.status == 1
    reason = str(ended.events["model_unavailable"]["reason"])
    assert reason.startswith(f"--model is '{NAME}': cannot be fetched from 127.0.0.1 now (")


def test_a_transfer_that_breaks_off_goes_on_where_it_was(machine: Machine, model: Path) -> None:
    """What arrived is not sent again; the file is whole."""
    machine.hub.cuts[WEIGHTS] = 1
    directory = machine.fetch(NAME)
    assert machine.hub.cuts == {WEIGHTS: 0}
    assert (directory / WEIGHTS).read_bytes() == (model / WEIGHTS).read_bytes()


@pytest.mark.slow
def test_a_hub_that_dies_in_a_file_leaves_no_half_a_model(machine: Machine, model: Path) -> None:
    """The next start fetches it whole; a start without the hub is refused."""
    machine.hub.deaths.add(WEIGHTS)
    ended = machine.run(NAME)
    assert ended.status == 1
    assert "cannot be fetched from 127.0.0.1 now" in ended.log
    assert WEIGHTS not in machine.cached()
    assert not list(machine.home.rglob("*.incomplete"))
    assert machine.run(NAME, HF_HUB_OFFLINE="1").status == 2
    machine.hub.deaths.clear()
    assert (machine.fetch(NAME) / WEIGHTS).read_bytes() == (model / WEIGHTS).read_bytes()


@pytest.mark.parametrize("name", ["../../outside.safetensors", "/outside.safetensors"])
def test_no_name_leads_out_of_the_cache(name: str, machine: Machine, model: Path) -> None:
    """Neither in the listing of files nor in the index of weights."""
    index = json.dumps({"weight_map": {"lm_head.weight": name}}).encode()
    others = {"model.safetensors.index.json": index, name: b"outside"}
    machine.hub.repositories[NAME] = Repository.of(model, others)
    assert machine.run(NAME).status == 2
    written = [path for path in machine.home.parent.rglob("*") if path.is_file()]
    assert not [path for path in written if path.read_bytes() == b"outside"]
    assert COMMIT in {path.parent.name for path in machine.home.rglob("config.json")}
