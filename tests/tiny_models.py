"""Tiny models and tokenizers made on the spot, as Hugging Face directories. Nothing is downloaded.

The weights are random, so the text is nonsense; shapes, files and formats are those of real ones.
"""

import functools
import json
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer

from models.recipe import vocabulary
from models.recipe.vocabulary import ASSISTANT, END, END_ID, USER

CHAT_TEMPLATE = (
    "{{- bos_token -}}"
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'user' -%}{{- '<|user|>' + message['content'] -}}"
    "{%- elif message['role'] == 'assistant' -%}"
    "{{- '<|assistant|>' + message['content'] + eos_token -}}"
    "{%- else -%}{{- raise_exception('no such role: ' ~ message['role']) -}}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"
)

_CORPUS = (
    "Once upon a time there was a little dragon who loved to fly a red kite.",
    "One day the dragon said: I want to play! The kite went up, up, up into the sky.",
    "She smiled and hugged her mom. They were happy 😀😀 and went home for tea ☕ and naïve café.",
    "The end. The end. The end.",
)


@functools.cache
def train_tokenizer(vocab_size: int = 320) -> Tokenizer:
    """A byte-level BPE tokenizer of `vocab_size` ids, 259 to 376: any text round-trips."""
    return vocabulary.train_tokenizer(_CORPUS, vocab_size)


def save_tokenizer(directory: Path, *, vocab_size: int = 320, max_model_len: int = 512) -> None:
    """Write tokenizer.json and tokenizer_config.json with CHAT_TEMPLATE."""
    directory.mkdir(parents=True, exist_ok=True)
    train_tokenizer(vocab_size).save(str(directory / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END,
        "eos_token": END,
        "pad_token": END,
        "additional_special_tokens": [USER, ASSISTANT],
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_model_len,
        "chat_template": CHAT_TEMPLATE,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")


def save_llama(
    directory: Path,
    *,
    seed: int = 0,
    vocab_size: int = 320,
    hidden_size: int = 32,
    num_layers: int = 2,
    max_model_len: int = 512,
    noise: float = 0.0,
) -> Path:
    """Write a random Llama with its tokenizer: float32 safetensors, 4 heads, 2 KV heads.

    The weights are larger than at a usual start, so that the logits are not all alike: greedy
    text varies and near-ties are rare. Two seeds give two models of one vocabulary; one seed with
    `noise` (standard deviation relative to each weight's own) a drafter that is right now and then.

    Returns:
        The directory.
    """
    save_tokenizer(directory, vocab_size=vocab_size, max_model_len=max_model_len)
    config = transformers.LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=max_model_len,
        bos_token_id=END_ID,
        eos_token_id=END_ID,
        pad_token_id=END_ID,
        initializer_range=0.3,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = transformers.LlamaForCausalLM(config)
        for weight in model.parameters() if noise else ():
            weight.data += noise * weight.std() * torch.randn_like(weight)
    model.save_pretrained(directory)
    return directory
