"""What a draft step costs on this GPU: `python -m bench.gpu_draft --model DIR`.

The drafter as the worker runs it (plan, pass, ranking, paths), without the bus: sessions whose
target confirms what was guessed. Prints milliseconds a step, and of its parts.
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
from shared.protocol.messages import DraftRequest, Verdict
from shared.protocol.sampling import SamplingParams

SESSIONS = (1, 8)
NUM_STEPS = 300
PROMPT_LEN = 64


class Stopwatch:
    """Seconds spent in some calls."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    def wrap(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """The same call, timed."""

        def timed(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 -- whatever it takes
            started = time.perf_counter()
            result = call(*args, **kwargs)
            self.seconds[name] += time.perf_counter() - started
            return result

        return timed


def measure(drafter: ModelDrafter, num_sessions: int) -> dict[str, float]:
    """Milliseconds a step, with the parts; every verdict confirms all that was guessed."""
    watch = Stopwatch()
    drafter._runner.run = watch.wrap("launch_ms", drafter._runner.run)  # type: ignore[method-assign]  # noqa: SLF001
    drafter._sampler.rank = watch.wrap("rank_ms", drafter._sampler.rank)  # type: ignore[method-assign]  # noqa: SLF001
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
            watch.seconds.clear()
            times.clear()
        for session_id, session in list(drafter.sessions.items()):
            if session.num_ahead >= 4:  # noqa: PLR2004 -- half of how far it may run ahead
                confirmed = session.main.token_ids[session.num_confirmed :]
                drafter.confirm(Verdict(session_id, session.num_confirmed, tuple(confirmed)))
    for index in range(num_sessions):
        drafter.close(f"{index}/0")
    parts = {name: 1e3 * seconds / len(times) for name, seconds in watch.seconds.items()}
    return {"step_ms": 1e3 * statistics.median(times), **parts}


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and write a JSON file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(argv)
    config = Config(
        model=str(options.model), device="cuda", block_size=64, num_blocks=2_048, step_cost=100.0
    )
    drafter = equip(config).drafter
    assert isinstance(drafter, ModelDrafter)
    lines = [{"sessions": number, **measure(drafter, number)} for number in SESSIONS]
    for line in lines:
        print("  ".join(f"{name} {value:.3f}" for name, value in line.items()), flush=True)
    options.out.write_text(json.dumps(lines, indent=1))


if __name__ == "__main__":
    main()
