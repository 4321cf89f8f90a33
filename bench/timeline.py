"""Target and drafter in virtual time: `python -m bench.timeline`, on any machine.

The real engine, drafter and bundled pair, run on a CPU, while a clock that is only moved counts
what rounds, steps and messages cost elsewhere: by default on two H200s with models of 8 and 1
billion parameters. So a policy can be judged without such a machine, and the same way twice. Not
counted: admission, commits, gateways, and what threads of one process cost each other.
"""

import argparse
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from bench.cpu import DRAFT, TARGET
from bench.prompts import MAX_TOKENS, PROMPTS, SEED
from bench.virtual_time import US, Costs, Counting, Drafter, Target, Timeline
from draft_worker.limits import DraftLimits
from shared.bus.jobs import Claim
from shared.engine.text import TextTokenizer
from shared.protocol.sampling import SamplingParams
from target_worker.admitted import AdmittedJob, Choice
from target_worker.goodput import Policy

GPU_LIMITS = DraftLimits(
    max_ahead=10, num_branches=16, num_alternates=3, max_num_rows=128, step_cost=40.0,
    min_odds=0.02, chunk=1,
)  # fmt: skip
ANSWERS_A_STREAM = {1: 4, 8: 2}


class Silent:
    """Text of nobody: only tokens count here."""

    is_stopped = can_stop = False

    def push(self, token_id: int) -> str:
        """See target_worker.admitted.Text."""
        del token_id
        return ""

    def flush(self) -> str:
        """See target_worker.admitted.Text."""
        return ""


@dataclass(frozen=True)
class Played:
    """What a load came to."""

    tokens_per_s: float
    num_rounds: int
    num_steps: int
    num_drafted: int
    num_accepted: int
    covered: float  # share of wrong guesses whose correction a branch had

    def __str__(self) -> str:
        return (
            f"{self.tokens_per_s:8.0f} tokens/s  {self.num_rounds} rounds  {self.num_steps} steps  "
            f"{self.num_accepted}/{self.num_drafted} drafts accepted  {self.covered:.2f} covered"
        )


@dataclass(frozen=True)
class Load:
    """What is asked."""

    streams: int
    temperature: float
    num_answers: int
    num_tokens: int = MAX_TOKENS
    policy: Policy = Policy.AUTO

    def jobs(self) -> list[AdmittedJob]:
        """One an answer, as admission hands them over."""
        tokenizer = TextTokenizer.load(TARGET)
        return [self._job(index, tokenizer) for index in range(self.num_answers)]

    def _job(self, index: int, tokenizer: TextTokenizer) -> AdmittedJob:
        prompt = tokenizer.encode_chat([("user", PROMPTS[index % len(PROMPTS)])])
        params = SamplingParams(seed=SEED + index, temperature=self.temperature)
        return AdmittedJob(
            claim=Claim(f"{index}", "jobs", "1-0", 1, 1, is_cancelled=False, deliveries=1,
                        lengths=(0,)),
            prompt_ids=tuple(prompt),
            max_len=len(prompt) + self.num_tokens,
            choices=(Choice(params, (), Silent(), None),),
            max_drafts=8,
            tenant="",
            deadline_ms=None,
        )  # fmt: skip


def play(load: Load, costs: Costs, limits: DraftLimits, *, can_follow: bool = True) -> Played:
    """Run a load to its end; with steps of the drafter begun one behind another, or not."""
    time, models = Timeline(), (Counting(TARGET), Counting(DRAFT))
    target = Target(time, costs, models[0], load.policy)
    target.drafter = Drafter(time, costs, models[1], limits, target, can_follow=can_follow)
    target.waiting = load.jobs()
    for _ in range(load.streams):
        target.engine.submit(target.waiting.pop(0))
    time.after(0.0, target.wake)
    time.run(lambda: not target.engine.num_jobs)
    assert not target.waiting
    drafts, counts = target.engine.totals.speculation(), target.drafter.model.counts
    return Played(
        tokens_per_s=target.engine.totals.num_generation_tokens / time.now_s,
        num_rounds=models[0].num_runs,
        num_steps=models[1].num_runs,
        num_drafted=drafts.num_draft_tokens,
        num_accepted=drafts.num_accepted_tokens,
        covered=counts["covered"] / max(1, counts["misses"]),
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Play every width at every temperature, and print each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--temperature", type=float, nargs="+", default=[0.0, 0.7])
    parser.add_argument("--step-us", type=float, default=Costs.step_s / US)
    parser.add_argument("--hop-us", type=float, default=Costs.hop_s / US)
    parser.add_argument("--one-by-one", action="store_true", help="steps of the drafter")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    costs = Costs(step_s=options.step_us * US, hop_s=options.hop_us * US)
    can_follow = not options.one_by_one
    for streams, temperature in itertools.product(options.streams, options.temperature):
        load = Load(streams, temperature, streams * ANSWERS_A_STREAM.get(streams, 1))
        played = play(load, costs, GPU_LIMITS, can_follow=can_follow)
        print(f"{streams:3d} streams  T {temperature}  {played}", flush=True)


if __name__ == "__main__":
    main()
