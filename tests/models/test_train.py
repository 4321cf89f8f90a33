"""The recipe runs from end to end on a CPU, at a size that takes seconds."""

import json
import random
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from models.recipe.corpus import Stories, render
from models.recipe.prompts import Nouns, Topics, swapped
from models.recipe.vocabulary import ASSISTANT_ID, END_ID, USER_ID, train_tokenizer

ROOT = Path(__file__).parents[2]
THINGS = ("kite", "ball", "boat", "cake", "drum", "hat")
ANIMALS = ("dragon", "cat", "frog", "bear")


def write_corpus(path: Path) -> list[str]:
    """Three hundred tiny stories, made up here: the real corpus is not in the repository."""
    rng = random.Random(0)
    stories = []
    for _ in range(300):
        animal, thing = rng.choice(ANIMALS), rng.choice(THINGS)
        stories.append(
            f"One day, a {animal} found a {thing}. The {animal} said to the {thing}, hello! "
            f"The {thing} was red. The {animal} was happy, and the {thing} was old."
        )
    path.write_text("\n<|endoftext|>\n".join(stories), encoding="utf-8")
    return stories


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_smoke_run_writes_a_loadable_pair_and_goes_on_where_it_was(tmp_path: Path) -> None:
    """One command makes both directories, the report and the picture; again, it only loads."""
    pytest.importorskip("matplotlib", reason="draws the loss curves; in the bench group")
    corpus, out = tmp_path / "stories.txt", tmp_path / "out"
    write_corpus(corpus)
    command = [sys.executable, str(ROOT / "models/train.py"), str(corpus), "--out", str(out)]
    run = partial(subprocess.run, check=True, capture_output=True, text=True)
    first = run([*command, "--smoke"])
    weights = (out / "storyteller/model.safetensors").read_bytes()
    second = run([*command, "--smoke"])
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert '"event": "teacher-0"' in first.stdout
    assert '"event": "teacher-0"' not in second.stdout
    assert (out / "storyteller/model.safetensors").read_bytes() == weights
    assert (out / "losses.png").stat().st_size < 100_000
    assert 0 <= report["agreement"]["chat prompts, T = 0.7"]["shared_noise"] <= 1
    for name in ("storyteller", "storyteller-draft"):
        model = AutoModelForCausalLM.from_pretrained(out / name)
        assert model.config.vocab_size >= len(AutoTokenizer.from_pretrained(out / name))


def test_nouns_are_told_from_adjectives_and_the_living_from_things(tmp_path: Path) -> None:
    """What ends a noun phrase after an article is a noun; what speaks is alive."""
    nouns = Nouns.of(write_corpus(tmp_path / "stories.txt"))
    assert set(nouns.phrases) <= {*THINGS, *ANIMALS}
    assert set(nouns.alive) <= set(ANIMALS)


def test_swapping_keeps_request_and_story_together() -> None:
    """Every mention changes, articles too, and the request asks for the new noun."""
    nouns = Nouns({"owl": 1.0}, {"cat": "a cat", "owl": "an owl"}, ("owl",), ("owl",))
    story, topics = swapped(
        "A cat met two cats.", Topics(("cat",), ("a cat",)), nouns, random.Random(0)
    )
    assert story == "An owl met two owls."
    assert str(topics) == "an owl"


def test_documents_follow_the_chat_template(tmp_path: Path) -> None:
    """A conversation is user, request, assistant, story, end; a plain story has no roles."""
    corpus = tmp_path / "stories.txt"
    write_corpus(corpus)
    stories = Stories.read(corpus)
    tokenizer = train_tokenizer(stories.train, 320)
    documents = render(stories.train, Nouns.of(stories.train), tokenizer, seed=0)
    conversations = [d.tolist() for d in documents if USER_ID in d]
    assert 0 < len(conversations) < len(documents)
    assert all(d[0] == USER_ID and d[-1] == END_ID for d in conversations)
    assert all(d.count(USER_ID) == d.count(ASSISTANT_ID) == d.count(END_ID) for d in conversations)
