"""The bundled model pair: small, safe to load, one tokenizer, and a draft that knows its target."""

import json
from pathlib import Path

import jinja2
import pytest
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.models.llama.modeling_llama import LlamaForCausalLM

pytestmark = pytest.mark.slow

MODELS = Path(__file__).parents[2] / "models"
FOLDERS = (MODELS / "storyteller", MODELS / "storyteller-draft")
MAX_SIZE_BYTES = 26_000_000  # both, so that the repository stays quick to clone
MAX_DRAFT_PARAMETERS = 1_000_000
MIN_GREEDY_AGREEMENT = 0.7  # models/README.md: 0.87 to 0.93 measured on many prompts
REQUEST = "Tell me a story about a dragon and a kite."


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    loaded: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(FOLDERS[0])
    return loaded


@pytest.fixture(scope="module")
def pair() -> tuple[LlamaForCausalLM, LlamaForCausalLM]:
    target, draft = (
        LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32) for folder in FOLDERS
    )
    assert isinstance(target, LlamaForCausalLM)
    assert isinstance(draft, LlamaForCausalLM)
    return target, draft


def prompt_ids(tokenizer: PreTrainedTokenizerBase, request: str) -> torch.Tensor:
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": request}], add_generation_prompt=True, tokenize=False
    )
    return torch.tensor([tokenizer.encode(str(text), add_special_tokens=False)])


@torch.no_grad()
def greedy(model: LlamaForCausalLM, ids: torch.Tensor, num_tokens: int) -> torch.Tensor:
    """`ids` [1, T] and at most `num_tokens` more, up to the end of the text."""
    output = model(ids, use_cache=True)
    for _ in range(num_tokens):
        token = output.logits[:, -1:].argmax(-1)
        ids = torch.cat([ids, token], dim=1)
        if int(token) == model.config.eos_token_id:
            break
        output = model(token, past_key_values=output.past_key_values, use_cache=True)
    return ids


def test_both_directories_fit_the_budget_and_hold_no_pickles() -> None:
    """A clone stays small, and loading the pair runs nobody's code."""
    files = [file for folder in FOLDERS for file in folder.iterdir()]
    assert sum(file.stat().st_size for file in files) <= MAX_SIZE_BYTES
    assert {file.suffix for file in files} == {".json", ".safetensors"}


def test_target_and_draft_share_one_tokenizer() -> None:
    """Token ids mean the same to both, byte for byte of the file."""
    first, second = (folder / "tokenizer.json" for folder in FOLDERS)
    assert first.read_bytes() == second.read_bytes()
    sizes = [json.loads((folder / "config.json").read_text())["vocab_size"] for folder in FOLDERS]
    assert sizes == [4096, 4096]


def test_the_draft_is_small(pair: tuple[LlamaForCausalLM, LlamaForCausalLM]) -> None:
    """A tenth of the target, under a million parameters, at most two layers."""
    target, draft = pair
    assert draft.num_parameters() <= MAX_DRAFT_PARAMETERS
    assert draft.num_parameters() * 10 <= target.num_parameters()
    assert draft.config.num_hidden_layers <= 2


def test_the_chat_template_renders_turns(tokenizer: PreTrainedTokenizerBase) -> None:
    """Several turns, the system message folded into the first user turn."""
    messages = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi."},
        {"role": "user", "content": "More"},
    ]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert text == (
        "<|endoftext|><|user|>Be kind.\n\nHello<|assistant|>Hi.<|endoftext|>"
        "<|user|>More<|assistant|>"
    )


@pytest.mark.parametrize(
    "messages",
    [
        pytest.param([{"role": "tool", "content": "x"}], id="unknown-role"),
        pytest.param(
            [{"role": "user", "content": "x"}, {"role": "system", "content": "y"}],
            id="late-system-message",
        ),
    ],
)
def test_the_chat_template_refuses_what_it_cannot_say(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]]
) -> None:
    """A role that the models never saw is an error, not silently dropped."""
    with pytest.raises(jinja2.TemplateError, match="roles are user and assistant"):
        tokenizer.apply_chat_template(messages, tokenize=False)


@pytest.mark.parametrize("text", ["", "a kite", " two  spaces\n", "naïve — 龍 🐉"])
def test_any_text_survives_the_tokenizer(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    """Bytes are in the vocabulary, so nothing is unknown."""
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_the_target_tells_the_story_that_was_asked_for(
    pair: tuple[LlamaForCausalLM, LlamaForCausalLM], tokenizer: PreTrainedTokenizerBase
) -> None:
    """The request of the README's quick start gives a finished story of a dragon and a kite."""
    ids = prompt_ids(tokenizer, REQUEST)
    story = greedy(pair[0], ids, 300)[0, ids.shape[1] :]
    text = str(tokenizer.decode(story))
    assert "dragon" in text
    assert "kite" in text
    assert int(story[-1]) == tokenizer.eos_token_id


def test_the_draft_agrees_with_the_target(
    pair: tuple[LlamaForCausalLM, LlamaForCausalLM], tokenizer: PreTrainedTokenizerBase
) -> None:
    """On the target's own greedy stories the draft's best token is mostly the target's."""
    target, draft = pair
    agreed = num_tokens = 0
    for request in (REQUEST, "Tell me a story.", "Write a story about a frog."):
        ids = prompt_ids(tokenizer, request)
        tokens = greedy(target, ids, 60)
        with torch.no_grad():
            guesses = draft(tokens).logits[0, ids.shape[1] - 1 : -1].argmax(-1)
        agreed += int((guesses == tokens[0, ids.shape[1] :]).sum())
        num_tokens += len(guesses)
    assert agreed >= MIN_GREEDY_AGREEMENT * num_tokens
