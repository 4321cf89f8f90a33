"""Admission: what fits the model becomes a job, the rest an error that names the field.

Refusals over the whole path are in test_worker.py.
"""

import json
from typing import Any

import pytest

from models.recipe.vocabulary import END_ID
from shared.bus.jobs import Claim
from shared.common.errors import ClientError, PeerError
from shared.engine.sampling import choice_seed
from shared.protocol.jobs import JobEntry
from shared.protocol.records import Finished, FinishReason, Record, Tokens
from shared.protocol.requests import parse_request
from target_worker.admission import Served, admit
from target_worker.admitted import AdmittedJob
from tests.target_worker import serving

CLAIM = Claim("job", "jobs", "1-0", 1, 99, is_cancelled=False, deliveries=1, lengths=())


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Served:
    """The tiny model as requests see it."""
    return serving.served(serving.tiny_model(tmp_path_factory.mktemp("models")))


def take(served: Served, log: tuple[Record, ...] = (), **fields: Any) -> AdmittedJob:  # noqa: ANN401
    body = json.dumps(serving.body(**fields)).encode()
    entry = JobEntry("job", body, deadline_ms=5, tenant="t")
    return admit(entry, parse_request(body), CLAIM, served, log)


def test_a_request_becomes_a_job(served: Served) -> None:
    """The recorded seed counts, not the body's; ids, limits and tenant are there."""
    job = take(served, n=2, ignore_eos=False, stop_token_ids=[7])
    assert [choice.params.seed for choice in job.choices] == [99, choice_seed(99, 1)]
    assert job.choices[0].params.stop_token_ids == (7, END_ID)
    assert job.max_len == len(job.prompt_ids) + 24
    assert (job.tenant, job.deadline_ms, job.max_drafts) == ("t", 5, 8)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"enabled": False}, 0),
        ({"num_speculative_tokens": 3}, 3),
        ({"num_speculative_tokens": 16}, 8),
    ],
    ids=["disabled", "fewer", "more-than-the-worker"],
)
def test_a_request_may_want_fewer_guesses(
    served: Served, options: dict[str, Any], expected: int
) -> None:
    """Never more than the worker allows."""
    assert take(served, speculation=options).max_drafts == expected


def test_without_a_limit_the_context_is_the_limit(served: Served) -> None:
    """The longest prompt leaves room for one token."""
    assert take(served, max_tokens=None).max_len == 512
    job = take(served, max_tokens=None, messages=None, prompt=[5] * 511)
    assert job.max_len - len(job.prompt_ids) == 1
    with pytest.raises(ClientError) as caught:
        take(served, max_tokens=None, messages=None, prompt=[5] * 512)
    assert caught.value.code == "context_length_exceeded"


def test_min_tokens_must_fit_too(served: Served) -> None:
    """Without max_tokens it is what was asked for at least."""
    with pytest.raises(ClientError) as caught:
        take(served, max_tokens=None, min_tokens=600)
    assert caught.value.code == "context_length_exceeded"


def test_a_takeover_starts_from_the_log(served: Served) -> None:
    """Tokens of each choice, and why it ended."""
    log = (
        Tokens(0, 0, (5, 6), ""),
        Tokens(1, 0, (7,), ""),
        Finished(1, "", FinishReason.STOP),
        Tokens(0, 2, (8,), ""),
    )
    job = take(served, log, n=3)
    assert [choice.output_ids for choice in job.choices] == [(5, 6, 8), (7,), ()]
    assert [choice.reason for choice in job.choices] == [None, FinishReason.STOP, None]


def test_the_text_of_a_takeover_goes_on_where_it_was(served: Served) -> None:
    """What was shown is not shown again; half a character is completed."""
    smile = served.tokenizer.encode("😀")
    whole = take(served)
    shown = [whole.choices[0].text.push(token_id) for token_id in smile]
    taken = take(served, (Tokens(0, 0, tuple(smile[:1]), ""),))
    assert [taken.choices[0].text.push(token_id) for token_id in smile[1:]] == shown[1:]


@pytest.mark.parametrize(
    "log",
    [
        (Tokens(1, 0, (5,), ""),),
        (Tokens(0, 3, (5,), ""),),
        (Tokens(0, 0, (5,) * 24, ""),),
        (Finished(0, "", FinishReason.STOP),),
    ],
    ids=["unknown-choice", "gap", "already-full", "nothing-open"],
)
def test_a_log_of_something_else_is_refused(served: Served, log: tuple[Record, ...]) -> None:
    """Somebody has written to the job's keys: better an error than a wrong answer."""
    with pytest.raises(PeerError):
        take(served, log)


def test_developer_is_another_name_of_system(served: Served) -> None:
    """This template has no system role, and says so in both cases."""
    with pytest.raises(ClientError, match="system"):
        take(served, messages=[{"role": "developer", "content": "x"}])
