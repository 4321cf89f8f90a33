"""The bundled pair through real processes: speculation changes no token of plain decoding."""

from typing import Any

import pytest

from bench.prompts import PROMPTS
from shared.protocol.records import Done
from tests.e2e.reference import plain_tokens
from tests.e2e.system import System, checked_tokens

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

NUM_PROMPTS = 52
MAX_TOKENS = 32
SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "T=0.7": {"temperature": 0.7},
    "T=1-filters-penalties": {
        "temperature": 1.0,
        "top_k": 50,
        "top_p": 0.95,
        "min_p": 0.01,
        "repetition_penalty": 1.1,
        "presence_penalty": 0.3,
        "frequency_penalty": 0.2,
        "logit_bias": {"20": 1.5},
        "min_tokens": 4,
    },
}


def requests() -> list[dict[str, Any]]:
    """52 prompts, each in all three settings."""
    return [
        {
            "model": "storyteller",
            "messages": [{"role": "user", "content": f"{PROMPTS[index % len(PROMPTS)]} ({index})"}],
            "max_tokens": MAX_TOKENS,
            "seed": 7_000 + index,
            **settings,
        }
        for index in range(NUM_PROMPTS)
        for settings in SETTINGS.values()
    ]


def test_speculation_changes_no_token_of_the_bundled_pair(system: System) -> None:
    """156 jobs at once, all guessed for by the draft worker: token-exact, and guesses were used."""
    system.target("--speculation", "on")
    system.draft()
    jobs = {system.submit(body): body for body in requests()}
    system.wait_end(list(jobs))
    num_accepted = 0
    for job_id, body in jobs.items():
        records = system.log(job_id)
        assert checked_tokens(records) == plain_tokens(body)
        end = records[-1]
        assert isinstance(end, Done)
        num_accepted += end.speculation.num_accepted_tokens
    assert num_accepted > len(jobs)
