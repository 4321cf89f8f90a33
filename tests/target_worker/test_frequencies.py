"""With guesses verified in every round, tokens are still drawn from the target's distribution."""

from collections import Counter

import pytest
import torch
from scipy import stats

from shared.protocol.sampling import SamplingParams
from tests.target_worker.engines import Drafter, Guess, Rig, make_job, make_rig

pytestmark = pytest.mark.slow

NUM_JOBS = 3_000
PROMPT = (1, 2, 3, 4, 5)


def likeliest(rig: Rig) -> Guess:
    """A drafter that always guesses the most probable token: a biased rule would favour it."""

    def guess(session_id: str, known: list[int]) -> list[tuple[int, tuple[int, ...]]]:
        del session_id
        path: list[int] = []
        for _ in range(2):
            path.append(int(rig.runner.logits([*known, *path]).argmax()))
        return [(len(known), tuple(path))]

    return guess


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_verified_tokens_follow_the_targets_distribution(temperature: float) -> None:
    """Chi-square of the token after a given first one, over many seeds, every round drafted."""
    rig = make_rig(num_blocks=256, max_num_seqs=32, max_batched_tokens=256)
    rig.runner.sharpness = 1.5
    drafter = Drafter(likeliest(rig))
    for seed in range(NUM_JOBS):
        params = SamplingParams(seed=seed, temperature=temperature)
        rig.engine.submit(make_job(f"job-{seed}", PROMPT, max_tokens=4, params=[params]))
    rig.run(drafter=drafter)
    drafted = sum(ended.num_drafted for ended in rig.said.ended)
    accepted = sum(ended.num_accepted for ended in rig.said.ended)
    assert 0 < accepted < drafted
    outputs = [rig.tokens(f"job-{seed}") for seed in range(NUM_JOBS)]
    first = Counter(output[0] for output in outputs).most_common(1)[0][0]
    followers = Counter(output[1] for output in outputs if output[0] == first)
    assert_drawn_from(followers, rig.runner.logits([*PROMPT, first]) / temperature)
    firsts = Counter(output[0] for output in outputs)
    assert_drawn_from(firsts, rig.runner.logits(PROMPT) / temperature)


def assert_drawn_from(found: Counter[int], scaled_logits: torch.Tensor) -> None:
    """Chi-square against softmax; rare tokens are counted together."""
    total = found.total()
    expected = (torch.softmax(scaled_logits.double(), 0) * total).tolist()
    common = [token for token, count in enumerate(expected) if count >= 5]
    observed = [found[token] for token in common]
    wanted = [expected[token] for token in common]
    observed.append(total - sum(observed))
    wanted.append(total - sum(wanted))
    assert stats.chisquare(observed, wanted).pvalue > 1e-3
