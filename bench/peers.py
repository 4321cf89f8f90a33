"""The peer on the same machine: transformers, plain and assisted, same pair, same prompts.

Run as a process of its own (`python -m bench.peers MODEL …`), alone on the machine; prints one
JSON line a setting. Assisted generation takes one sequence at a time: its streams follow one
another.
"""

import argparse
import itertools
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LogitsProcessorList
from transformers.generation.logits_process import LogitsProcessor

from bench.prompts import MAX_TOKENS, PROMPTS, SEED

Model = Any  # transformers makes its classes at run time


class FirstToken(LogitsProcessor):
    """Notes when the first logits are there: the peer's time to first token."""

    def __init__(self) -> None:
        self.at_s = 0.0

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Leave the scores as they are."""
        del input_ids
        self.at_s = self.at_s or time.perf_counter()
        return scores


def load(model_dir: Path, device: str) -> Model:
    """The model as the engine runs it: in float32 on the CPU, in bfloat16 on a GPU."""
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    model: Model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=dtype)
    model.to(device)
    model.requires_grad_(requires_grad=False)
    return model


def answer(
    model: Model, inputs: dict[str, torch.Tensor], temperature: float, assistant: Model
) -> tuple[float, float, int]:
    """Generate MAX_TOKENS for every row.

    Returns:
        (seconds to first token, seconds in all, tokens).
    """
    first = FirstToken()
    sampling = (
        {"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False}
    )
    started = time.perf_counter()
    output = model.generate(
        **inputs,
        **sampling,
        top_k=0 if temperature else None,
        max_new_tokens=MAX_TOKENS,
        min_new_tokens=MAX_TOKENS,
        assistant_model=assistant,
        logits_processor=LogitsProcessorList([first]),
    )
    duration_s = time.perf_counter() - started
    num_tokens = output.shape[0] * (output.shape[1] - inputs["input_ids"].shape[1])
    return first.at_s - started, duration_s, num_tokens


def batches(
    tokenizer: Model, num_streams: int, num_prompts: int, device: str
) -> list[dict[str, torch.Tensor]]:
    """The chat prompts, over and over, in left-padded batches of `num_streams`."""
    prompts = [PROMPTS[index % len(PROMPTS)] for index in range(num_prompts)]
    chats = [[{"role": "user", "content": prompt}] for prompt in prompts]
    return [
        tokenizer.apply_chat_template(
            chats[start : start + num_streams],
            add_generation_prompt=True,
            padding=True,
            return_dict=True,
            return_tensors="pt",
        ).to(device)
        for start in range(0, len(chats), num_streams)
    ]


def measure(
    model: Model, assistant: Model, work: list[dict[str, torch.Tensor]], temperature: float
) -> dict[str, Any]:
    """One setting: what every batch took, after one to warm up."""
    with torch.inference_mode():
        answer(model, work[0], temperature, assistant)
        results = [answer(model, inputs, temperature, assistant) for inputs in work]
    tokens, seconds = sum(r[2] for r in results), sum(r[1] for r in results)
    return {"tokens_per_s": tokens / seconds, "ttft_s": [r[0] for r in results]}


def main(argv: Sequence[str] | None = None) -> None:
    """Measure every number of streams at every temperature, and print each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--assistant", type=Path)
    parser.add_argument("--streams", type=int, nargs="+", default=[1])
    parser.add_argument("--prompts", type=int, default=4, help="at least; a batch is always full")
    parser.add_argument("--temperature", type=float, nargs="+", default=[0.7])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--assistant-device", help="where its device is not the model's")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    torch.manual_seed(SEED)
    tokenizer = AutoTokenizer.from_pretrained(options.model, padding_side="left")
    model, assistant = load(options.model, options.device), None
    if options.assistant:
        assistant = load(options.assistant, options.assistant_device or options.device)
    for streams, temperature in itertools.product(options.streams, options.temperature):
        width = 1 if assistant else streams
        work = batches(tokenizer, width, max(options.prompts, width), options.device)
        line = measure(model, assistant, work, temperature)
        print(json.dumps({"streams": streams, "temperature": temperature} | line), flush=True)


if __name__ == "__main__":
    main()
