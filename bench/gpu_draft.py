"""What a draft step costs on this GPU: `python -m bench.gpu_draft --model DIR`.

The drafter as the worker runs it (plan, pass, ranking, paths; a step begun behind the one under
way), without the bus: sessions whose target confirms what was guessed. Prints milliseconds a step,
and of its host's parts: staging and launching the pass, the same of the ranking, waiting, and the
rest, which is mostly planning. Where it never waits, the host is what a step takes.
"""

import argparse
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from draft_worker.config import Config
from draft_worker.equipment import equip
from draft_worker.model_drafter import ModelDrafter
from shared.engine.gpu.ranking import GpuRanker
from shared.protocol.messages import DraftRequest, Verdict
from shared.protocol.sampling import SamplingParams

SESSIONS = (1, 8)
NUM_STEPS = 300
PROMPT_LEN = 64
# What is timed: methods of the ranker's runner and of its sampler.
RUNNER_PARTS = {"run": "pass_ms", "run_guessed": "pass_behind_ms"}
SAMPLER_PARTS = {"begin_rank": "rank_ms"}


class Stopwatch:
    """Seconds spent in some methods of some objects, while it runs."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._wrapped: list[tuple[object, str]] = []

    def wrap(self, owner: object, parts: dict[str, str]) -> None:
        """Time methods, each under its name."""
        for method, name in parts.items():
            setattr(owner, method, self._timed(name, getattr(owner, method)))
            self._wrapped.append((owner, method))

    def unwrap(self) -> None:
        """Leave the methods as they were."""
        for owner, method in self._wrapped:
            delattr(owner, method)

    def _timed(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        self.seconds[name] = 0.0

        def timed(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 -- whatever it takes
            started = time.perf_counter()
            result = call(*args, **kwargs)
            self.seconds[name] += time.perf_counter() - started
            return result

        return timed


def measure(drafter: ModelDrafter, num_sessions: int, *, has_parts: bool) -> dict[str, float]:
    """Milliseconds a step, with the parts or without; verdicts confirm all that was guessed."""
    watch = Stopwatch()
    if has_parts:
        ranker = drafter._ranker  # noqa: SLF001 -- the bench looks inside
        assert isinstance(ranker, GpuRanker)
        watch.wrap(ranker._runner, RUNNER_PARTS)  # noqa: SLF001
        watch.wrap(ranker._sampler, SAMPLER_PARTS)  # noqa: SLF001
        for side in ranker._sampler._sides:  # noqa: SLF001
            watch.wrap(side, {"wait": "wait_ms"})
    for index in range(num_sessions):
        params = SamplingParams(seed=index, temperature=0.7)
        tokens = tuple(range(5, 5 + PROMPT_LEN))
        drafter.open(DraftRequest(f"{index}/0", "t", 1, "", PROMPT_LEN, 8_000, tokens, params))
    times: list[float] = []
    for number in range(NUM_STEPS):
        started = time.perf_counter()
        drafter.step()
        times.append(time.perf_counter() - started)
        if number == NUM_STEPS // 10:  # warm
            watch.seconds = defaultdict(float, dict.fromkeys(watch.seconds, 0.0))
            times.clear()
        for session_id, session in list(drafter.sessions.items()):
            if session.num_ahead >= 4:  # noqa: PLR2004 -- half of how far it may run ahead
                confirmed = session.main.token_ids[session.num_confirmed :]
                drafter.confirm(Verdict(session_id, session.num_confirmed, tuple(confirmed)))
    for index in range(num_sessions):
        drafter.close(f"{index}/0")
    watch.unwrap()
    if not has_parts:
        return {"step_ms": 1e3 * statistics.median(times)}
    parts = {name: 1e3 * seconds / len(times) for name, seconds in watch.seconds.items()}
    parts["rest_ms"] = 1e3 * statistics.fmean(times) - sum(parts.values())
    return {"timed_step_ms": 1e3 * statistics.median(times), **parts}


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and write a JSON file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(argv)
    config = Config(
        model=str(options.model), device="cuda", block_size=64, num_blocks=2_048, step_cost=40.0
    )
    drafter = equip(config).drafter
    assert isinstance(drafter, ModelDrafter)
    lines: list[dict[str, float]] = [
        {
            "sessions": number,
            **measure(drafter, number, has_parts=False),
            **measure(drafter, number, has_parts=True),
        }
        for number in SESSIONS
    ]
    for line in lines:
        print("  ".join(f"{name} {value:.3f}" for name, value in line.items()), flush=True)
    options.out.write_text(json.dumps(lines, indent=1))


if __name__ == "__main__":
    main()
