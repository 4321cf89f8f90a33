"""A hub id in the place of a directory, through the real client, from a hub on loopback."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from shared.engine.checkpoint import INDEX_FILE, SINGLE_FILE
from shared.engine.hub import DESCRIPTION_FILES, WEIGHTS_FILE, Part
from shared.engine.runner import ModelRunner
from shared.engine.spans import Span
from tests.checkpoints import CONFIGS, random_tokens, save_checkpoint
from tests.hub import COMMIT, Hub, Repository
from tests.hub_machine import ROOT, Machine
from tests.tiny_models import save_llama, save_tokenizer

NAME = "org/tiny"
OTHERS = {
    "pytorch_model.bin": b"pickle",
    "consolidated.safetensors": b"the same again",
    "modeling_tiny.py": b"code",
    "original/config.json": b"{}",
    "README.md": b"text",
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model in shards, with its tokenizer."""
    directory = tmp_path_factory.mktemp("hub") / "model"
    save_checkpoint(directory, CONFIGS["qwen2"], max_shard_size="40KB")
    save_tokenizer(directory)
    assert len(list(directory.glob("*.safetensors"))) > 2
    return directory


@pytest.fixture
def machine(tmp_path: Path, model: Path) -> Iterator[Machine]:
    """A cache that is empty, and a hub with the model and what else repositories hold."""
    with Hub({NAME: Repository.of(model, OTHERS)}) as hub:
        yield Machine(tmp_path / "home", hub)


def logits(directory: Path) -> Tensor:
    """Of some tokens, by our own decoder."""
    runner = ModelRunner.load(directory, num_blocks=4, block_size=16)
    return runner.run([Span(random_tokens(40), 0, (0, 1, 2), 40)])


def test_only_what_is_read_is_downloaded(machine: Machine, model: Path) -> None:
    """No pickles, no code, no second copy of the weights, no telemetry: not even asked for."""
    directory = machine.fetch(NAME)
    wanted = {path.name for path in model.iterdir()} & {*DESCRIPTION_FILES}
    wanted |= {path.name for path in model.glob("*.safetensors")}
    assert machine.hub.downloads == wanted
    assert {path.name for path in directory.iterdir()} == wanted
    assert all(
        path.removeprefix("api/models/").startswith(NAME) for _, path in machine.hub.requests
    )
    assert all((directory / name).read_bytes() == (model / name).read_bytes() for name in wanted)


def test_a_fetched_model_computes_what_its_source_does(machine: Machine, model: Path) -> None:
    """Bit for bit, from shards that the cache keeps behind links."""
    assert torch.equal(logits(machine.fetch(NAME)), logits(model))


def test_a_model_in_one_file_is_fetched_too(tmp_path: Path) -> None:
    """Without an index there is one file of weights."""
    model = save_llama(tmp_path / "model")
    with Hub({NAME: Repository.of(model, OTHERS)}) as hub:
        directory = Machine(tmp_path / "home", hub).fetch(NAME)
    assert (directory / SINGLE_FILE).read_bytes() == (model / SINGLE_FILE).read_bytes()
    assert hub.downloads == {path.name for path in directory.iterdir()}


def test_the_second_start_needs_no_download(machine: Machine) -> None:
    """Nor a hub: offline on purpose, or because the hub is away."""
    first = machine.fetch(NAME)
    num_downloads = len([method for method, path in machine.hub.requests if "/resolve/" in path])
    assert machine.fetch(NAME) == first
    assert len([1 for _, path in machine.hub.requests if "/resolve/" in path]) == num_downloads
    assert machine.fetch(NAME, HF_HUB_OFFLINE="1") == first
    machine.hub.close()
    assert machine.fetch(NAME) == first


def test_a_description_has_no_weights_and_is_completed_later(machine: Machine) -> None:
    """What the n-gram drafter and --plan read is small."""
    directory = machine.fetch(NAME, Part.DESCRIPTION)
    assert not list(directory.glob("*.safetensors"))
    offline = machine.run(NAME, HF_HUB_OFFLINE="1")
    assert (offline.status, "HF_HUB_OFFLINE is set" in offline.log) == (2, True)
    assert machine.fetch(NAME) == directory
    assert list(directory.glob("*.safetensors"))


@pytest.mark.parametrize("revision", ["v1.0", "refs/pr/7", COMMIT])
def test_a_revision_is_a_branch_a_tag_or_a_commit(
    revision: str, machine: Machine, model: Path
) -> None:
    """The commit it stood for is the directory's name, and logged."""
    machine.hub.repositories[NAME] = Repository.of(model)
    machine.hub.repositories[NAME].revisions = (revision, COMMIT)
    ended = machine.run(f"{NAME}@{revision}")
    assert (ended.status, Path(ended.out).name) == (0, COMMIT)
    begun, done = ended.events["model_downloading"], ended.events["model_downloaded"]
    assert (begun["model"], begun["revision"]) == (NAME, revision)
    assert (done["commit"], done["directory"]) == (COMMIT, ended.out)
    assert isinstance(done["duration_s"], float)


def test_a_commit_in_the_cache_asks_nobody(machine: Machine) -> None:
    """It cannot change."""
    first = machine.fetch(f"{NAME}@{COMMIT}")
    machine.hub.requests.clear()
    assert machine.fetch(f"{NAME}@{COMMIT}") == first
    assert machine.hub.requests == []


def test_the_log_is_events_alone(machine: Machine) -> None:
    """No progress bars, no lines of the library's own, nothing on stdout but what we print."""
    ended = machine.run(NAME)
    assert {*ended.events} == {"model_downloading", "model_downloaded"}
    assert ended.out.count("\n") == 0


def test_a_token_is_sent_to_who_asks_for_it(machine: Machine, model: Path) -> None:
    """HF_TOKEN, as the library documents it; it is not logged."""
    machine.hub.repositories[NAME] = Repository.of(model)
    machine.hub.repositories[NAME].token = "hf_secret"
    ended = machine.run(NAME, HF_TOKEN="hf_secret")
    assert (ended.status, "hf_secret" in ended.log) == (0, False)


def test_a_directory_needs_neither_the_library_nor_torch(tmp_path: Path) -> None:
    """Both take time to import."""
    program = (
        "import sys; from shared.engine.hub import model_directory; "
        "print(model_directory(sys.argv[1])); "
        "sys.exit(bool({'huggingface_hub', 'torch'} & {*sys.modules}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout.strip()) == (0, str(tmp_path))


def test_weights_are_called_as_the_checkpoint_calls_them() -> None:
    """Two modules know the names; one of them must not import torch."""
    assert WEIGHTS_FILE == SINGLE_FILE
    assert INDEX_FILE in DESCRIPTION_FILES
