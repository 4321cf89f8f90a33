"""The engine: the same tokens whatever is guessed, how many choices there are, or who began."""

import pytest
import torch

from shared.engine.sampling import choice_seed
from shared.protocol.records import Done, Finished, FinishReason, Tokens
from shared.protocol.sampling import SamplingParams
from tests.target_worker.engines import (
    Drafter,
    V,
    make_job,
    make_rig,
    mixed_guess,
    reference,
    right_guess,
)

SAMPLING = {
    "greedy": SamplingParams(seed=1, temperature=0.0),
    "warm": SamplingParams(seed=2, temperature=0.7),
    "filtered": SamplingParams(
        seed=3,
        temperature=1.0,
        top_k=20,
        top_p=0.9,
        min_p=0.01,
        repetition_penalty=1.2,
        presence_penalty=0.5,
        frequency_penalty=0.3,
        logit_bias=((4, 2.0), (9, -100.0)),
        min_tokens=3,
        stop_token_ids=(0, 11),
    ),
}


@pytest.mark.parametrize("params", SAMPLING.values(), ids=SAMPLING)
@pytest.mark.parametrize("guesses", ["none", "right", "mixed"])
@pytest.mark.parametrize("num_blocks", [11, 200], ids=["tiny-pool", "large-pool"])
def test_guesses_and_preemption_never_change_a_token(
    params: SamplingParams, guesses: str, num_blocks: int
) -> None:
    """Many sessions, chunked prefill, preemption in the tiny pool: the reference's answers."""
    rig = make_rig(num_blocks=num_blocks, max_batched_tokens=9, max_num_seqs=5)
    jobs = {
        f"job{index}": make_job(
            f"job{index}", [(index * 7 + i) % V for i in range(3 + 2 * index)], params=[params]
        )
        for index in range(6)
    }
    answers = {name: reference(rig, job) for name, job in jobs.items()}
    truth = {f"{name}/0": [*job.prompt_ids, *answers[name]] for name, job in jobs.items()}
    drafter = {
        "none": None,
        "right": Drafter(right_guess(truth)),
        "mixed": Drafter(mixed_guess(truth)),
    }
    for job in jobs.values():
        rig.engine.submit(job)
    rig.run(drafter=drafter[guesses])
    assert {name: rig.tokens(name) for name in jobs} == answers
    assert (rig.engine.num_preemptions > 0) == (num_blocks == 11)


def test_right_guesses_save_rounds() -> None:
    """Five right guesses a round make six tokens of it, and the statistics say so."""
    rig = make_rig()
    job = make_job(max_tokens=36)
    answer = [*job.prompt_ids, *reference(rig, job)]
    rig.engine.submit(job)
    rig.run(drafter=Drafter(right_guess({"job/0": answer})))
    done = rig.records()[-1]
    assert isinstance(done, Done)
    assert rig.runner.num_runs < 12
    assert done.speculation.acceptance_rate == 1.0
    assert done.speculation.mean_acceptance_length > 5
    assert (done.usage.prompt_tokens, done.usage.completion_tokens) == (5, 36)


def test_a_stop_inside_a_draft_ends_the_session_there() -> None:
    """Right guesses behind the stop id are not emitted."""
    rig = make_rig()
    plain = reference(rig, make_job(max_tokens=30))
    params = SamplingParams(seed=7, stop_token_ids=(plain[9],))
    job = make_job(max_tokens=30, params=[params])
    expected = reference(rig, job)
    rig.engine.submit(job)
    rig.run(drafter=Drafter(right_guess({"job/0": [1, 2, 3, 4, 5, *plain]}, length=7)))
    done = rig.records()[-1]
    assert rig.tokens() == expected
    assert isinstance(done, Done)
    assert done.reasons == (FinishReason.STOP,)
    assert done.speculation.num_accepted_tokens < done.usage.completion_tokens


def test_a_stop_string_across_a_draft_ends_the_session_there() -> None:
    """The text decides in the same round; what was guessed behind it is dropped."""
    rig = make_rig()
    plain = reference(rig, make_job(max_tokens=30))
    stop = "".join(chr(ord("a") + token_id % 26) for token_id in plain[5:8])
    job = make_job(max_tokens=30, stop_strings=[stop])
    rig.engine.submit(job)
    rig.run(drafter=Drafter(right_guess({"job/0": [1, 2, 3, 4, 5, *plain]})))
    assert rig.tokens() == reference(rig, job, stop_strings=[stop])


def test_a_full_context_inside_a_draft_ends_the_session_there() -> None:
    """Guesses beyond the last position are not verified."""
    rig = make_rig()
    plain = reference(rig, make_job(max_tokens=30))
    for max_tokens in range(1, 9):
        job = make_job(f"job{max_tokens}", max_tokens=max_tokens)
        rig.engine.submit(job)
        answer = {f"job{max_tokens}/0": [1, 2, 3, 4, 5, *plain]}
        rig.run(drafter=Drafter(right_guess(answer, length=8)))
        assert rig.tokens(f"job{max_tokens}") == plain[:max_tokens]
        done = rig.records(f"job{max_tokens}")[-1]
        assert isinstance(done, Done)
        assert done.reasons == (FinishReason.LENGTH,)


def test_choices_share_the_prompt_and_end_with_one_done() -> None:
    """n = 3: three answers, own seeds, the prompt computed once, the last choice writes `done`."""
    rig = make_rig()
    params = [
        SamplingParams(seed=choice_seed(7, choice), stop_token_ids=tuple(range(choice * 4)))
        for choice in range(3)
    ]
    job = make_job(prompt=range(1, 20), params=params, max_tokens=20)
    rig.engine.submit(job)
    rig.run()
    for choice in range(3):
        assert rig.tokens("job", choice) == reference(rig, job, choice)
    records = rig.records()
    assert sum(isinstance(record, Finished) for record in records) == 2
    done = records[-1]
    assert isinstance(done, Done)
    assert (len(done.reasons), done.usage.prompt_tokens) == (3, 19)


def test_the_second_job_of_a_tenant_finds_the_prompt_cached() -> None:
    """Blocks are shared within a tenant, never across."""
    rig = make_rig()
    for job_id, tenant in [("first", "t"), ("again", "t"), ("other", "u")]:
        rig.engine.submit(make_job(job_id, range(1, 18), tenant=tenant))
        rig.run()
    cached = {job_id: rig.records(job_id)[-1] for job_id in ("first", "again", "other")}
    found = {
        name: done.usage.cached_tokens for name, done in cached.items() if isinstance(done, Done)
    }
    assert found == {"first": 0, "again": 16, "other": 0}


def test_a_takeover_continues_where_the_log_ends() -> None:
    """Confirmed tokens are prefilled, not emitted again; the rest is what it would have been."""
    rig = make_rig()
    whole = reference(rig, make_job())
    rig.engine.submit(make_job(outputs=[whole[:5]], epoch=2))
    rig.run()
    first = rig.records()[0]
    assert isinstance(first, Tokens)
    assert first.offset == 5
    found = [token for r in rig.records() if isinstance(r, Tokens) for token in r.token_ids]
    assert found == whole[5:]
    done = rig.records()[-1]
    assert isinstance(done, Done)
    assert done.usage.completion_tokens == len(whole)


def test_a_finished_choice_stays_finished_after_a_takeover() -> None:
    """Only the open choice goes on, and `done` gives both reasons in order."""
    rig = make_rig()
    params = [SamplingParams(seed=1), SamplingParams(seed=2)]
    job = make_job(params=params, outputs=[[9, 9], []], reasons=[FinishReason.STOP, None], epoch=2)
    rig.engine.submit(job)
    rig.run()
    done = rig.records()[-1]
    assert isinstance(done, Done)
    assert (done.choice, done.reasons) == (1, (FinishReason.STOP, FinishReason.LENGTH))
    assert not [r for r in rig.records() if isinstance(r, Tokens) and r.choice == 0]


def test_logits_of_one_row_do_not_depend_on_the_company() -> None:
    """The fake model itself: a guard for the tests above."""
    rig = make_rig()
    assert torch.equal(rig.runner.logits([1, 2]), rig.runner.logits((1, 2)))
