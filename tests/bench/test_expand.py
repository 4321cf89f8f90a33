"""A grown model is the same function, for our engine and for transformers."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig

from bench.expand import SHAPES, Shape, expand, main
from shared.common.errors import ConfigError
from shared.engine.runner import ModelRunner
from shared.engine.spans import Span
from shared.engine.text import TextTokenizer
from tests.checkpoints import (
    AUTO_MODEL,
    CONFIGS,
    LLAMA3,
    SIZES,
    VOCAB_SIZE,
    YARN,
    expected_logits,
    random_tokens,
    save_checkpoint,
)
from tests.tiny_models import save_tokenizer

DRAFT = Path(__file__).parents[2] / "models" / "storyteller-draft"
# Of the tiny models (48 wide, 3 layers, 6 heads and 2 key heads of 8, 80 units, 97 ids).
LARGER = Shape(
    hidden_size=80,
    layers=5,
    heads=16,
    kv_heads=4,
    head_dim=16,
    intermediate_size=112,
    vocab_size=211,
    positions=128,
)
SAME = Shape(48, 3, 6, 2, 8, 80, VOCAB_SIZE, 128)
MAX_ERROR = 1e-4  # of float32 logits


def our_logits(directory: Path, token_ids: list[int]) -> Tensor:
    """Every row of one sequence: [T, V]."""
    runner = ModelRunner.load(directory, num_blocks=8, block_size=16)
    return runner.run([Span(token_ids, 0, list(range(8)), len(token_ids))])


def their_model(directory: Path) -> nn.Module:
    """As transformers loads it, in float32."""
    model: nn.Module = AUTO_MODEL.from_pretrained(directory, dtype=torch.float32)
    return model.eval()


def config_of(**changes: object) -> LlamaConfig:
    """The tiny Llama with other sizes or switches."""
    return LlamaConfig(**SIZES | changes)


@pytest.mark.parametrize(
    ("config", "shape"),
    [
        pytest.param(config_of(), LARGER, id="everything-at-once"),
        pytest.param(config_of(tie_word_embeddings=True), LARGER, id="tied"),
        pytest.param(config_of(rope_parameters=LLAMA3), LARGER, id="llama3-rope"),
        pytest.param(
            config_of(rope_parameters=YARN),
            dataclasses.replace(LARGER, head_dim=8),
            id="yarn-rope",
        ),
        pytest.param(
            config_of(), dataclasses.replace(LARGER, heads=16, kv_heads=8), id="key-heads-repeated"
        ),
        pytest.param(
            config_of(), dataclasses.replace(LARGER, heads=8, kv_heads=8), id="one-query-a-key"
        ),
        pytest.param(
            config_of(num_key_value_heads=6), dataclasses.replace(LARGER, kv_heads=8), id="ungroup"
        ),
        pytest.param(config_of(), Shape(49, 3, 7, 7, 8, 80, 98, 128), id="by-one"),
        pytest.param(config_of(), SAME, id="no-growth"),
    ],
)
def test_a_grown_model_gives_the_same_logits(
    config: LlamaConfig, shape: Shape, tmp_path: Path
) -> None:
    """By our engine and by transformers; ids of the source only, the others are far below."""
    source = save_checkpoint(tmp_path / "source", config)
    grown = tmp_path / "grown"
    expand(tmp_path / "source", grown, shape, dtype=torch.float32)
    token_ids = random_tokens(63)
    expected = expected_logits(source, token_ids)
    for logits in (our_logits(grown, token_ids), expected_logits(their_model(grown), token_ids)):
        assert logits.shape == (63, shape.vocab_size)
        assert (logits[:, :VOCAB_SIZE] - expected).abs().max() <= MAX_ERROR
        assert torch.isfinite(logits).all()
        if shape.vocab_size > VOCAB_SIZE:
            highest_new = logits[:, VOCAB_SIZE:].amax(dim=1)
            assert (highest_new <= expected.amin(dim=1) - 100).all()


def test_greedy_text_goes_on_as_before(tmp_path: Path) -> None:
    """Token after token, each fed back."""
    source = save_checkpoint(tmp_path / "source", config_of())
    expand(tmp_path / "source", tmp_path / "grown", LARGER, dtype=torch.float32)
    grown = their_model(tmp_path / "grown")
    texts = []
    for model in (source, grown):
        token_ids = random_tokens(9)
        for _ in range(32):
            token_ids.append(int(expected_logits(model, token_ids)[-1].argmax()))
        texts.append(token_ids)
    assert texts[0] == texts[1]


def test_only_what_must_be_zero_is_zero(tmp_path: Path) -> None:
    """New layers and units cost what trained ones cost: their weights are numbers."""
    save_checkpoint(tmp_path / "source", config_of())
    expand(tmp_path / "source", tmp_path / "grown", LARGER, dtype=torch.float32)
    weights = their_model(tmp_path / "grown").state_dict()
    shares = {
        name: float((weights[f"model.layers.4.{name}.weight"] == 0).float().mean())
        for name in ("self_attn.q_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.down_proj")
    }
    assert shares == {
        "self_attn.q_proj": 0,
        "self_attn.v_proj": 0,
        "self_attn.o_proj": 1,
        "mlp.down_proj": 0,
    }
    strip = weights["model.layers.4.mlp.up_proj.weight"]
    assert torch.equal((strip == 0).sum(dim=1), torch.full((112,), 49))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_shards_in_sixteen_bits_are_one_model(dtype: torch.dtype, tmp_path: Path) -> None:
    """Many small files, an index, the same text to the precision of the dtype."""
    source = save_checkpoint(tmp_path / "source", config_of())
    grown = tmp_path / "grown"
    expand(tmp_path / "source", grown, LARGER, dtype=dtype, max_shard_bytes=20_000)
    token_ids = random_tokens(63)
    logits = our_logits(grown, token_ids)[:, :VOCAB_SIZE]
    assert len(list(grown.glob("model-*-of-*.safetensors"))) > 2
    assert json.loads((grown / "config.json").read_text())["dtype"] == str(dtype)[6:]
    assert (logits - expected_logits(source, token_ids)).abs().max() <= 0.02


def test_the_seed_decides_the_random_weights(tmp_path: Path) -> None:
    """The same seed, the same files."""
    save_checkpoint(tmp_path / "source", config_of())
    contents = []
    for name, seed in (("first", 1), ("second", 1), ("third", 2)):
        expand(tmp_path / "source", tmp_path / name, LARGER, seed=seed)
        contents.append((tmp_path / name / "model.safetensors").read_bytes())
    assert contents[0] == contents[1] != contents[2]


def test_the_tokenizer_comes_along(tmp_path: Path) -> None:
    """All files but weights and sizes."""
    save_checkpoint(tmp_path / "source", config_of())
    save_tokenizer(tmp_path / "source")
    expand(tmp_path / "source", tmp_path / "grown", LARGER)
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        copied = (tmp_path / "grown" / name).read_bytes()
        assert copied == (tmp_path / "source" / name).read_bytes()


@pytest.mark.slow
def test_the_bundled_draft_tells_the_same_story_at_a_larger_size(tmp_path: Path) -> None:
    """From the command line, in float32, greedily."""
    flags = "--hidden-size 256 --layers 4 --heads 16 --kv-heads 8 --head-dim 64"
    flags += " --intermediate-size 640 --vocab-size 5000 --dtype float32 --max-shard-gib 0.01"
    main(["--source", str(DRAFT), "--out", str(tmp_path / "grown"), *flags.split()])
    prompt = TextTokenizer.load(tmp_path / "grown").encode_chat([("user", "Tell me a story.")])
    texts = []
    for directory in (DRAFT, tmp_path / "grown"):
        runner = ModelRunner.load(directory, num_blocks=8, block_size=16)
        token_ids, computed = list(prompt), 0
        while len(token_ids) < len(prompt) + 64:
            span = Span(token_ids[computed:], computed, list(range(8)), 1)
            computed = len(token_ids)
            token_ids.append(int(runner.run([span])[-1].argmax()))
        texts.append(token_ids)
    assert texts[0] == texts[1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 48}, "hidden_size is 48; allowed: at least 49"),
        ({"layers": 2}, "layers is 2; allowed: at least 3"),
        ({"head_dim": 12}, "head_dim is 12; allowed: multiples of 8"),
        ({"kv_heads": 3}, "kv_heads is 3; allowed: a divisor of 16"),
        ({"hidden_size": 72}, "hidden_size is 72; allowed: multiples of heads"),
        ({"heads": 4, "kv_heads": 2}, "kv_heads is 2; allowed: at least 4"),
        ({"vocab_size": 96}, "vocab_size is 96; allowed: at least 97"),
    ],
)
def test_a_shape_without_room_is_refused(
    changes: dict[str, int], message: str, tmp_path: Path
) -> None:
    """Nothing of the source may be cut."""
    save_checkpoint(tmp_path / "source", config_of())
    with pytest.raises(ConfigError, match=message):
        expand(tmp_path / "source", tmp_path / "grown", dataclasses.replace(LARGER, **changes))
    assert not (tmp_path / "grown").exists()


def test_a_source_with_biases_is_refused(tmp_path: Path) -> None:
    """Only plain Llamas can grow."""
    save_checkpoint(tmp_path / "source", CONFIGS["llama-yarn-biased"])
    with pytest.raises(ConfigError, match="no Llama without biases"):
        expand(tmp_path / "source", tmp_path / "grown", LARGER)


def test_rotary_scaling_that_would_change_is_refused(tmp_path: Path) -> None:
    """YaRN ends its ramp at a whole pair: here at 2, and at 3 of twice as many."""
    yarn = YARN | {"original_max_position_embeddings": 64}
    save_checkpoint(tmp_path / "source", config_of(rope_parameters=yarn))
    with pytest.raises(ConfigError, match="rotary scaling of the source depends on a size"):
        expand(tmp_path / "source", tmp_path / "grown", LARGER)
    assert not (tmp_path / "grown").exists()


def test_an_existing_directory_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its files are somebody's; the command line says so with status 2."""
    with pytest.raises(SystemExit) as ending:
        main(["--source", str(DRAFT), "--out", str(tmp_path), "--shape", "llama-3.2-1b"])
    assert ending.value.code == 2
    assert "exists; allowed: a directory to be made" in capsys.readouterr().err


def test_the_known_shapes_are_of_the_known_sizes() -> None:
    """8.03 and, with a head of its own, 1.50 billion parameters."""
    sizes = {}
    for name, shape in SHAPES.items():
        projections = 2 * (shape.heads + shape.kv_heads) * shape.head_dim
        layer = shape.hidden_size * (projections + 3 * shape.intermediate_size + 2)
        sizes[name] = shape.layers * layer + shape.hidden_size * (2 * shape.vocab_size + 1)
    assert sizes == {"llama-3-8b": 8_030_261_248, "llama-3.2-1b": 1_498_482_688}
