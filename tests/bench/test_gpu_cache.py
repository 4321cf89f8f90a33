"""The bench of a cache of 8 bits, at a tiny size."""

import json
from pathlib import Path

import pytest

from bench.gpu_cache import PAIRS, VARIANTS, Choices, compare, main
from bench.gpu_report import cache_section
from tests.tiny_models import save_llama

# Rows of a tile that are none hold whatever memory holds; numpy warns of it in the interpreter.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.runtime.interpreter")

CORPUS = "<|endoftext|>".join(["The dragon went up, up, up."] * 3)


def test_two_variants_are_compared_position_by_position() -> None:
    """Shares of equal choices by temperature, and differences of log-probabilities in size."""
    one = Choices([-1.0, -2.0, -3.0, -4.0], {0.0: [1, 2, 3, 4], 0.7: [1, 1, 1, 1]})
    other = Choices([-1.5, -2.0, -2.5, -4.0], {0.0: [1, 2, 3, 5], 0.7: [1, 1, 2, 2]})
    assert compare(one, other) == {
        "agreement_t0": 0.75,
        "agreement_t0.7": 0.5,
        "mean_log_prob_difference": 0.25,
        "max_log_prob_difference": 0.5,
    }


def test_all_variants_read_what_the_first_one_told(tmp_path: Path) -> None:
    """A file with every pair on both kinds of text, and a table made of it."""
    model = save_llama(tmp_path / "model", hidden_size=128, num_layers=1, max_model_len=64)
    corpus, out = tmp_path / "corpus.txt", tmp_path / "gpu_cache.json"
    corpus.write_text(CORPUS)
    main([f"--{name}={value}" for name, value in {
        "model": model, "corpus": corpus, "texts": 1, "tokens": 3, "device": "cpu", "out": out,
    }.items()])  # fmt: skip
    result = json.loads(out.read_text())
    told, held_out = result["texts"]["told"], result["texts"]["held out"]
    assert (told["num_texts"], told["num_positions"]) == (1, 3)
    assert (held_out["num_texts"], held_out["num_positions"] > 5) == (1, True)
    for kind in (told, held_out):
        assert list(kind["nats"]) == [variant.name for variant in VARIANTS]
        assert [(pair["one"], pair["other"]) for pair in kind["pairs"]] == list(PAIRS)
        assert all(0 < pair["mean_log_prob_difference"] < 1 for pair in kind["pairs"])
    assert all(0 < size < 448 for sizes in result["largest"].values() for size in sizes.values())
    table = cache_section(result)
    assert all(f"| {one} and {other} |" in table for one, other in PAIRS)
