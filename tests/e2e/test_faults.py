"""kill -9, SIGSTOP and restarts under live streams: every stream ends once, token-exact."""

import signal
from typing import Any

import pytest

from shared.protocol.limits import LEASE_S
from tests.e2e.processes import eventually
from tests.e2e.reference import plain_tokens
from tests.e2e.system import System, checked_tokens

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]

NUM_STREAMS = 8
MAX_TOKENS = 300
SHOWN = 5  # tokens that every stream has shown before anything is hurt


def bodies(num: int = NUM_STREAMS) -> list[dict[str, Any]]:
    """Long stories at several temperatures, with seeds."""
    heroes = ("cat", "dog", "bird", "frog", "bear", "fish", "boy", "girl")
    return [
        {
            "model": "storyteller",
            "messages": [{"role": "user", "content": f"Tell me a story about a {hero}."}],
            "max_tokens": MAX_TOKENS,
            "ignore_eos": True,
            "temperature": (0.0, 0.7, 1.0)[index % 3],
            "seed": 1_000 + index,
        }
        for index, hero in enumerate(heroes[:num])
    ]


def start_streams(system: System) -> dict[str, dict[str, Any]]:
    """Submit them and wait until all are streaming."""
    jobs = {system.submit(body): body for body in bodies()}
    system.wait_tokens(list(jobs), SHOWN)
    return jobs


def assert_all_exact(system: System, jobs: dict[str, dict[str, Any]]) -> None:
    """Every job ended once, with the tokens that plain decoding gives."""
    system.wait_end(list(jobs))
    for job_id, body in jobs.items():
        assert checked_tokens(system.log(job_id)) == plain_tokens(body)


def test_a_second_target_takes_over_from_a_killed_one(system: System) -> None:
    """kill -9 of the target mid-stream: another continues every stream where it stood."""
    first = system.target()
    system.draft()
    jobs = start_streams(system)
    first.kill()
    assert not system.are_over(jobs)
    system.target()
    assert_all_exact(system, jobs)


def test_a_target_that_slept_past_its_lease_is_refused(system: System) -> None:
    """SIGSTOP for longer than the lease, then SIGCONT: the new owner's log is not touched."""
    first = system.target()
    system.draft()
    jobs = start_streams(system)
    first.send(signal.SIGSTOP)
    assert not system.are_over(jobs)
    system.target()
    heartbeat = system.keys.heartbeat("target:*")
    eventually(lambda: len(system.client.keys(heartbeat)) == 1, LEASE_S * 3)
    system.wait_tokens(list(jobs), SHOWN + 1)
    first.send(signal.SIGCONT)
    assert_all_exact(system, jobs)
    assert first.stop() == 0


def test_streams_go_on_without_their_draft_worker(system: System) -> None:
    """kill -9 of the drafter mid-stream, and a new one later: same tokens."""
    system.target()
    draft = system.draft()
    jobs = start_streams(system)
    draft.kill()
    system.draft()
    assert_all_exact(system, jobs)


def test_streams_survive_a_server_restart(system: System) -> None:
    """kill -9 of the server and a restart from its append-only file: nothing lost or doubled."""
    system.target()
    system.draft()
    jobs = start_streams(system)
    system.server.restart()
    assert_all_exact(system, jobs)


def test_an_ordered_shutdown_hands_streams_to_the_next_target(system: System) -> None:
    """SIGTERM with a drain limit of zero: handed back at once, finished by the other, exit 0."""
    first = system.target("--drain-s", "0")
    jobs = start_streams(system)
    assert first.stop() == 0
    assert not system.are_over(jobs)
    system.target()
    assert_all_exact(system, jobs)
