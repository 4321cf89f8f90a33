"""Rounds that begin before the one before is known, where nobody guesses."""

from collections.abc import Sequence

import pytest

from shared.engine.following import Follow
from shared.engine.samplers import Collect
from shared.engine.sampling import VerifyRequest
from shared.engine.spans import Span
from shared.protocol.messages import DraftAccepted, DraftClosed, DraftPath
from shared.protocol.records import Tokens
from shared.protocol.sampling import SamplingParams
from target_worker.admitted import AdmittedJob
from target_worker.engine import FAILED
from tests.fakes import FakeFollower
from tests.target_worker.engines import DRAFTER, Rig, make_job, make_rig, reference

PARAMS = SamplingParams(seed=7, temperature=0.9)


def rig_of(jobs: Sequence[AdmittedJob], **settings: object) -> Rig:
    rig = make_rig(overlap_from=1, follows=True, **settings)  # type: ignore[arg-type]
    for job in jobs:
        rig.engine.submit(job)
    return rig


def make_jobs(num: int, *, max_tokens: int = 12) -> list[AdmittedJob]:
    return [
        make_job(f"job{i}", (1, 2, 3 + i), max_tokens=max_tokens + i, params=(PARAMS,))
        for i in range(num)
    ]


def check(rig: Rig, jobs: Sequence[AdmittedJob]) -> None:
    """Every job has its own answer."""
    rig.run()
    for job in jobs:
        assert rig.tokens(job.claim.job_id) == reference(rig, job)


@pytest.mark.parametrize("num_jobs", [1, 3])
def test_nearly_every_round_begins_behind_another(num_jobs: int) -> None:
    """All but those of the prompts and the first after them; none for a session that is over."""
    jobs = make_jobs(num_jobs)
    rig = rig_of(jobs)
    check(rig, jobs)
    most = 12 + num_jobs - 1
    assert rig.runner.num_runs == most  # not one in vain
    assert rig.follower.num_rounds == most - 2


def test_what_a_round_confirms_is_said_while_the_next_one_is_under_way() -> None:
    """One token a step, and one round more begun than said."""
    (job,) = make_jobs(1)
    rig = rig_of([job])
    while not rig.follower.num_rounds:
        rig.step()
    for _ in range(5):
        num_runs = rig.runner.num_runs
        outcome = rig.step()
        records = [one for _, all_of_them in outcome.records.values() for one in all_of_them]
        assert sum(len(one.token_ids) for one in records if isinstance(one, Tokens)) == 1
        assert rig.runner.num_runs == num_runs + 1 == len(rig.tokens("job0")) + 1


def test_a_session_that_stops_leaves_the_round_behind_without_an_effect() -> None:
    """Its row there is dropped, and its blocks go to the next one who waits."""
    params = SamplingParams(seed=7, temperature=0.9, stop_token_ids=tuple(range(0, 50, 3)))
    jobs = [make_job(f"job{i}", (1, 2, i), max_tokens=40, params=(params,)) for i in range(9)]
    rig = rig_of(jobs, max_num_seqs=2, num_blocks=24)
    check(rig, jobs)
    assert rig.follower.num_rounds


def test_a_newcomer_is_let_in_one_round_later() -> None:
    """What is begun already is run; the next round has the newcomer, and is waited for."""
    first, second = make_jobs(2)
    rig = rig_of([first])
    while not rig.follower.num_rounds:
        rig.step()
    num_runs = rig.runner.num_runs
    rig.engine.submit(second)
    while rig.follower.num_rounds == 1:
        rig.step()
    # The newcomer's prompt, a round waited for behind it, and the first begun behind that one.
    assert rig.runner.num_runs == num_runs + 3
    assert rig.engine.num_running == 2
    check(rig, [first, second])


def test_a_round_is_waited_for_while_somebody_guesses() -> None:
    """A drafter's verdicts and guesses are worth more than the time between two rounds."""
    (job,) = make_jobs(1, max_tokens=30)
    rig = rig_of([job])
    for _ in range(3):
        rig.step()
    rig.engine.receive([DraftAccepted("job0/0", DRAFTER)], 0.0)
    rig.step()
    num_followed = rig.follower.num_rounds
    for _ in range(6):
        rig.step()
    assert rig.follower.num_rounds == num_followed
    rig.engine.receive([DraftClosed("job0/0")], 0.0)
    check(rig, [job])
    assert rig.follower.num_rounds > num_followed


@pytest.mark.parametrize("num_right", [0, 2, 4])
def test_a_round_may_follow_one_with_guesses(num_right: int) -> None:
    """Of a drafter that has gone: the device knows how many were right, the engine does not yet."""
    (job,) = make_jobs(1, max_tokens=20)
    rig = rig_of([job])
    answer = reference(rig, job)
    guess = (*answer[:num_right], *((token + 1) % 50 for token in answer[num_right:5]))
    rig.engine.receive([DraftPath("job0/0", len(job.prompt_ids), guess)], 0.0)
    check(rig, [job])
    assert rig.follower.num_rounds
    assert rig.engine.totals.speculation().num_draft_tokens


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(seed=1, presence_penalty=0.5),
        SamplingParams(seed=1, logit_bias=((5, 1.0),)),
        SamplingParams(seed=1, min_tokens=50, stop_token_ids=(3,)),
    ],
    ids=["penalty", "bias", "min_tokens"],
)
def test_a_round_is_waited_for_where_tokens_change_the_logits(params: SamplingParams) -> None:
    """What changes them is formed on the host."""
    job = make_job("odd", params=(params,))
    rig = rig_of([job])
    check(rig, [job])
    assert rig.follower.num_rounds == 0


class Moody(FakeFollower):
    """Fails at one round: when it is begun, or when it is collected."""

    fails_at = 4
    is_late = False
    num_begun = 0

    def begin_verify(self, logits: object, requests: Sequence[VerifyRequest]) -> Collect:
        self.num_begun += 1
        collect = super().begin_verify(logits, requests)  # type: ignore[arg-type]
        if self.num_begun != self.fails_at:
            return collect
        if not self.is_late:
            raise RuntimeError("launch")
        self._confirmed = {row: [0] for row in self._confirmed}  # what the device has is wrong

        def fail() -> list[list[int]]:
            raise RuntimeError("collect")

        return fail


class Slow(Moody):
    """Fails when it is collected; the round behind has gone on from its tokens."""

    is_late = True


class Hasty(FakeFollower):
    """Cannot begin a round behind another."""

    def begin(
        self,
        spans: Sequence[Span],
        requests: Sequence[VerifyRequest],
        follows: Sequence[Follow],
    ) -> Collect:
        del spans, requests, follows
        self.num_rounds += 1
        raise RuntimeError("launch")


@pytest.mark.parametrize("kind", [Moody, Slow, Hasty])
def test_a_round_that_fails_costs_no_token(kind: type[FakeFollower]) -> None:
    """Its rows are repeated one by one, and what was begun behind it is forgotten."""
    jobs = make_jobs(3)
    rig = rig_of(
        jobs,
        wrap_follower=lambda own: kind(own._runner, own._sampler),
    )
    check(rig, jobs)
    assert rig.follower.num_rounds


class Blind(FakeFollower):
    """Finds no usable logits for the first row of one round."""

    num_begun = 0

    def begin_verify(self, logits: object, requests: Sequence[VerifyRequest]) -> Collect:
        self.num_begun += 1
        collect = super().begin_verify(logits, requests)  # type: ignore[arg-type]
        if self.num_begun != 4:
            return collect
        self._confirmed[0] = []
        return lambda: [[], *collect()[1:]]


def test_a_round_behind_one_without_any_token_is_forgotten() -> None:
    """The self-test has run in between; who comes next is served as ever."""
    first, second = make_jobs(2)
    rig = rig_of([first], wrap_follower=lambda own: Blind(own._runner, own._sampler))
    rig.run()
    assert rig.records("job0")[-1] == FAILED
    assert rig.follower.num_rounds
    assert rig.engine._flight is None
    rig.engine.submit(second)
    rig.run()
    assert rig.tokens("job1") == reference(rig, second)


def test_a_session_without_a_next_token_fails_alone() -> None:
    """It is in the round behind all the same, and what that gives is dropped."""
    jobs = make_jobs(3)
    rig = rig_of(jobs, wrap_follower=lambda own: Blind(own._runner, own._sampler))
    rig.run()
    first, *others = jobs
    assert rig.records("job0")[-1] == FAILED
    assert rig.tokens("job0") == reference(rig, first)[: len(rig.tokens("job0"))]
    for job in others:
        assert rig.tokens(job.claim.job_id) == reference(rig, job)
