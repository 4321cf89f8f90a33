"""The whole path on GPUs: client, gateway, server, workers: `python -m bench.gpu_path`.

Speculation and plain decoding side by side, target on the first GPU and draft on the second where
there is one; answers of a fixed length, at several numbers of streams and temperatures. The models
are those of `bench.expand`: the cost of large ones, the text and the acceptance of the bundled
pair. The peer is transformers in a process of its own, with no server around it.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import uvloop

from bench.cpu import machine
from bench.load import stream_all
from bench.prompts import PROMPTS
from bench.system import environment, running
from bench.usage import by_process, look, spent

STREAMS = (1, 8, 32, 64)
TEMPERATURES = (0.0, 0.7)
ANSWERS_A_STREAM = {1: 6, 8: 3, 32: 2, 64: 2}
TURNS = 2
KINDS: dict[str, tuple[dict[str, str], tuple[str, ...]]] = {  # variables, flags of the stack
    "plain": ({}, ("--draft-workers", "0")),
    "speculation": ({}, ()),
    "always": ({"TARGET_WORKER_SPECULATION": "on"}, ()),
}
PEER = "transformers"


def measure(url: str, model: str, width: int, temperature: float) -> dict[str, Any]:
    """One load."""
    num_answers = width * ANSWERS_A_STREAM[width]
    prompts = [PROMPTS[index % len(PROMPTS)] for index in range(num_answers)]
    before = look()
    load = uvloop.run(stream_all(url, model, prompts, num_streams=width, temperature=temperature))
    seconds = spent(before, look())
    stats = [answer.speculation for answer in load.answers if answer.speculation]
    drafted = sum(one.get("num_draft_tokens", 0) for one in stats)
    accepted = sum(one.get("num_accepted_draft_tokens", 0) for one in stats)
    rounds = sum(one.get("num_spec_steps", 0) for one in stats)
    return {
        "tokens_per_s": load.tokens_per_s,
        "ttft_ms": 1e3 * statistics.median(answer.ttft_s for answer in load.answers),
        "num_tokens": sum(answer.num_tokens for answer in load.answers),
        "num_draft_tokens": drafted,
        "num_accepted_tokens": accepted,
        "num_rounds": rounds,
        # Cores kept busy by each process, and by each of its threads.
        "busy": {name: cpu_s / load.duration_s for name, cpu_s in by_process(seconds).items()},
        "busy_threads": {"/".join(key): cpu_s / load.duration_s for key, cpu_s in seconds.items()},
        "texts": [answer.text for answer in load.answers],
    }


def measure_peer(target: Path, streams: Sequence[int]) -> list[dict[str, Any]]:
    """transformers' generate on the first GPU: batches that begin and end together."""
    command = [sys.executable, "-m", "bench.peers", str(target), "--device", "cuda:0"]
    command += ["--streams", *map(str, streams), "--temperature", *map(str, TEMPERATURES)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    for line in lines:
        line |= {"kind": PEER, "ttft_ms": 1e3 * statistics.median(line.pop("ttft_s"))}
        print(f"{PEER} {line['streams']:3d} streams  {line['tokens_per_s']:8.1f} tokens/s")
    return lines


def gpu_names() -> list[str]:
    """What CUDA may see here, and its driver."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    query += [f"--id={visible}"] if visible else []
    return subprocess.run(query, check=True, capture_output=True, text=True).stdout.splitlines()


def settings(num_gpus: int) -> dict[str, str]:
    """Variables of both workers; the draft on the last GPU."""
    return {
        "TARGET_WORKER_DEVICE": "cuda:0",
        "TARGET_WORKER_BLOCK_SIZE": "64",
        "TARGET_WORKER_MAX_NUM_SEQS": "64",
        "TARGET_WORKER_MAX_MODEL_LEN": "1024",
        "TARGET_WORKER_KV_CACHE_TOKENS": "131072",
        "DRAFT_WORKER_DEVICE": f"cuda:{num_gpus - 1}",
        "DRAFT_WORKER_BLOCK_SIZE": "64",
        "DRAFT_WORKER_NUM_BLOCKS": "4096",
        "DRAFT_WORKER_MAX_NUM_ROWS": "128",
        "DRAFT_WORKER_STEP_COST": "40",  # a step costs the host as much as forty rows
        # As the compose file has them: rows beside the first cost next to nothing.
        "DRAFT_WORKER_CHUNK": "1",
        "DRAFT_WORKER_MAX_AHEAD": "10",
        "DRAFT_WORKER_NUM_BRANCHES": "16",
        "DRAFT_WORKER_NUM_ALTERNATES": "3",
        "DRAFT_WORKER_MIN_ODDS": "0.02",
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, and write one JSON file as it grows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", type=Path, required=True)
    parser.add_argument("--draft", type=Path, required=True)
    parser.add_argument(
        "--kinds", nargs="+", choices=[*KINDS, PEER], default=["plain", "speculation"]
    )
    parser.add_argument("--streams", type=int, nargs="+", default=STREAMS)
    parser.add_argument("--turns", type=int, default=TURNS)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(argv)
    names = gpu_names()
    models = ("--target", str(options.target), "--draft", str(options.draft))
    lines: list[dict[str, Any]] = []

    def keep(line: dict[str, Any]) -> None:
        """Write all so far: a run that is cut short loses nothing."""
        lines.append(line)
        bare = [{key: one[key] for key in one if key != "texts"} for one in lines]
        result = {"gpus": names, "machine": machine(), "lines": bare}
        options.out.write_text(json.dumps(result | {"same_texts": _same_texts(lines)}, indent=1))

    for kind in options.kinds:
        if kind == PEER:
            for line in measure_peer(options.target, options.streams):
                keep(line)
            continue
        variables, flags = KINDS[kind]
        with environment(**settings(len(names)), **variables), running(*models, *flags) as url:
            for load in itertools.product(options.streams, TEMPERATURES, range(1 + options.turns)):
                width, temperature, turn = load
                line = measure(url, options.target.name, width, temperature)
                if turn:  # the policy learns at the first what pays at this load
                    line |= {"kind": kind, "streams": width, "temperature": temperature}
                    keep(line)
                    print(_text(line), flush=True)
    print(f"texts equal with and without speculation: {_same_texts(lines)}")


def _text(line: dict[str, Any]) -> str:
    """One load for a person."""
    return (
        f"{line['kind']:11s} {line['streams']:3d} streams  T {line['temperature']}  "
        f"{line['tokens_per_s']:8.1f} tokens/s  ttft {line['ttft_ms']:6.1f} ms  "
        f"{line['num_accepted_tokens']}/{line['num_draft_tokens']} in "
        f"{line['num_rounds']} rounds  {_busy(line['busy'])}"
    )


def _busy(shares: dict[str, float]) -> str:
    """Shares of a core, of those that have any to speak of."""
    names = sorted(name for name, share in shares.items() if share >= 0.05)  # noqa: PLR2004
    return "  ".join(f"{name} {shares[name]:.2f}" for name in names)


def _same_texts(lines: Sequence[dict[str, Any]]) -> str:
    """Answers that are the same with speculation, of all that were given both ways."""
    texts: dict[tuple[int, float], dict[str, list[str]]] = {}
    for line in lines:
        if line["kind"] == PEER:
            continue
        texts.setdefault((line["streams"], line["temperature"]), {})[line["kind"]] = line["texts"]
    pairs = [
        pair
        for kinds in texts.values()
        for other in kinds
        if other != "plain" and "plain" in kinds
        for pair in zip(kinds["plain"], kinds[other], strict=True)
    ]
    return f"{sum(plain == other for plain, other in pairs)} of {len(pairs)}"


if __name__ == "__main__":
    main()
