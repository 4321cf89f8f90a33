"""What a token costs the host beside the model: `python -m bench.host`, on any machine with Linux.

The whole path of a user's stack (client, gateway, server, target worker) with a target model that
costs next to nothing, so that what is left is ours. CPU time is what counts: tokens/s depend on how
many cores the processes have to share.
"""

import argparse
import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import uvloop
from safetensors.torch import save_file

from bench.cpu import TARGET, machine
from bench.load import Load, stream_all
from bench.prompts import PROMPTS
from bench.system import environment, running
from bench.usage import by_process, look, spent
from shared.engine.checkpoint import SINGLE_FILE, expected_shapes
from shared.engine.config import ModelConfig

STREAMS = (1, 32, 64)
ANSWERS_A_STREAM = {1: 4}
DEFAULT_ANSWERS = 2
TURNS = 2
SIZES = {  # of the target: its vocabulary and text are those of the bundled model
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "dtype": "float32",
}
WEIGHT_SCALE = 0.3  # larger than at a usual start, so that greedy text varies
SEED = 0


def save_tiny(directory: Path) -> Path:
    """Write a random Llama with the bundled tokenizer as a Hugging Face directory."""
    directory.mkdir(parents=True)
    for path in TARGET.glob("*.json"):
        shutil.copy(path, directory / path.name)
    settings = json.loads((TARGET / "config.json").read_text()) | SIZES
    (directory / "config.json").write_text(json.dumps(settings))
    config = ModelConfig.from_directory(directory)
    noise = torch.Generator().manual_seed(SEED)
    weights = {
        name: WEIGHT_SCALE * torch.randn(shape, generator=noise)
        for name, shape in expected_shapes(config).items()
    }
    save_file(weights, directory / SINGLE_FILE, metadata={"format": "pt"})
    return directory


def measure(url: str, model: str, width: int, temperature: float) -> dict[str, Any]:
    """One load: tokens/s, and CPU milliseconds a token of every process and thread."""
    num_answers = width * ANSWERS_A_STREAM.get(width, DEFAULT_ANSWERS)
    prompts = [PROMPTS[index % len(PROMPTS)] for index in range(num_answers)]
    before = look()
    load: Load = uvloop.run(
        stream_all(url, model, prompts, num_streams=width, temperature=temperature)
    )
    seconds = spent(before, look())
    num_tokens = sum(answer.num_tokens for answer in load.answers)
    return {
        "streams": width,
        "tokens_per_s": load.tokens_per_s,
        "num_tokens": num_tokens,
        "num_frames": sum(answer.num_frames for answer in load.answers),
        "busy": {name: cpu_s / load.duration_s for name, cpu_s in by_process(seconds).items()},
        "cpu_ms_a_token": {
            "/".join(key): 1e3 * cpu_s / num_tokens for key, cpu_s in seconds.items()
        },
    }


def say(line: dict[str, Any]) -> None:
    """One load for a person."""
    tokens_a_frame = line["num_tokens"] / max(1, line["num_frames"])
    print(
        f"{line['streams']:3d} streams  {line['tokens_per_s']:8.1f} tokens/s  "
        f"{tokens_a_frame:.2f} tokens a frame",
        flush=True,
    )
    for name, cpu_ms in sorted(line["cpu_ms_a_token"].items()):
        if cpu_ms >= 0.001:  # noqa: PLR2004 - a thousandth of a millisecond is nobody's limit
            print(f"    {name:32s} {cpu_ms:7.3f} ms of CPU a token")


def main(argv: Sequence[str] | None = None) -> None:
    """Measure every width in turn and write what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, nargs="+", default=STREAMS)
    parser.add_argument("--turns", type=int, default=TURNS)
    parser.add_argument("--target", type=Path, help="a model other than the tiny one")
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--out", type=Path, help="a JSON file of all lines")
    options = parser.parse_args(argv)
    lines = []
    with tempfile.TemporaryDirectory(prefix="outrider-host-") as folder:
        model = options.target or save_tiny(Path(folder) / "tiny")
        settings = {"TARGET_WORKER_MAX_NUM_SEQS": str(max(options.streams))}
        flags = ("--target", str(model), "--draft-workers", "0")
        with environment(**settings), running(*flags) as url:
            for turn in range(1 + options.turns):
                for width in options.streams:
                    line = measure(url, model.name, width, options.temperature)
                    if turn:  # the first one warms up
                        lines.append(line)
                        say(line)
    if options.out is not None:
        options.out.write_text(json.dumps({"machine": machine(), "lines": lines}, indent=1))


if __name__ == "__main__":
    main()
