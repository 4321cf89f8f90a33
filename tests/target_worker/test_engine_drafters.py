"""The engine and its drafters: whom it asks, tells, gives up and sends away."""

import math
import sys
from collections.abc import Sequence

import pytest
from torch import Tensor

from shared.engine.samplers import Collect
from shared.engine.sampling import VerifyRequest
from shared.protocol.messages import DraftAccepted, DraftClosed, DraftPath, Message, Verdict
from shared.protocol.records import Done
from target_worker.cost import Measured
from target_worker.goodput import Policy
from target_worker.pause import POLL_S
from tests.fakes import FakeFollower
from tests.target_worker.engines import (
    DRAFTER,
    Drafter,
    Rig,
    make_job,
    make_rig,
    reference,
    right_guess,
)


def test_a_late_drafter_is_told_what_it_missed() -> None:
    """Between request and offer tokens were confirmed; the first verdict closes the gap."""
    rig = make_rig()
    rig.engine.submit(make_job(max_tokens=30))
    (request,) = rig.step().requests
    for _ in range(4):
        rig.step()
    rig.engine.receive([DraftAccepted("job/0", DRAFTER)], 0.0)
    outcome = rig.engine.take_outcome()
    (verdict,) = outcome.mail[DRAFTER]
    assert isinstance(verdict, Verdict)
    assert (verdict.base_len, len(verdict.token_ids)) == (len(request.token_ids), 5)


def test_drafters_of_nobody_are_sent_away() -> None:
    """An offer for a session that is over, or that wants none, is declined."""
    rig = make_rig()
    rig.engine.submit(make_job("plain", max_drafts=0, max_tokens=30))
    assert not rig.step().requests
    for session_id in ("plain/0", "gone/0"):
        rig.engine.receive([DraftAccepted(session_id, DRAFTER)], 0.0)
        assert rig.engine.take_outcome().mail == {DRAFTER: [DraftClosed(session_id)]}
    rig.engine.receive([DraftPath("gone/0", 1, (1,)), DraftClosed("gone/0")], 0.0)
    assert not rig.engine.take_outcome()


def test_a_second_drafter_for_a_session_is_sent_away() -> None:
    """One drafter gets the verdicts; its repeated offer is harmless."""
    rig = make_rig()
    rig.engine.submit(make_job(max_tokens=30))
    rig.step()
    rig.engine.receive([DraftAccepted("job/0", DRAFTER), DraftAccepted("job/0", DRAFTER)], 0.0)
    rig.engine.receive([DraftAccepted("job/0", "draft:b")], 0.0)
    assert rig.engine.take_outcome().mail["draft:b"] == [DraftClosed("job/0")]


def test_a_silent_drafter_is_given_up_and_another_one_asked() -> None:
    """Verdicts without an answer for a second: a new request, decoding plainly meanwhile."""
    rig = make_rig(num_blocks=400)
    rig.engine.submit(make_job(max_tokens=1_400))
    assert rig.step().requests
    rig.engine.receive([DraftAccepted("job/0", DRAFTER)], 0.0)
    for _ in range(1_100):
        rig.step()
    assert len(rig.said.requests) == 2


def test_an_ended_session_dismisses_its_drafter() -> None:
    """The last word to a drafter is `closed`, after every verdict in order."""
    rig = make_rig()
    job = make_job()
    rig.engine.submit(job)
    drafter = Drafter(right_guess({"job/0": [*job.prompt_ids, *reference(rig, job)]}))
    rig.run(drafter=drafter)
    assert rig.said.mail[DRAFTER][-1] == DraftClosed("job/0")
    assert not drafter.known


def test_without_speculation_nobody_is_asked() -> None:
    """Policy off: no requests, offers declined, guesses ignored."""
    rig = make_rig(policy=Policy.OFF)
    job = make_job(max_tokens=20)
    rig.engine.submit(job)
    rig.step()
    rig.engine.receive([DraftPath("job/0", 6, tuple(range(5)))], 0.0)
    rig.run()
    assert not rig.said.requests
    done = rig.records()[-1]
    assert isinstance(done, Done)
    assert (done.speculation.num_rounds, rig.runner.num_runs) == (0, 20)


def test_more_guesses_than_a_round_has_room_for_are_cut() -> None:
    """Rounds of two tokens, the least there can be: one guess a round is verified."""
    rig = make_rig(max_num_seqs=1, max_batched_tokens=2)
    job = make_job(max_tokens=20)
    answer = reference(rig, job)
    rig.engine.submit(job)
    rig.run(drafter=Drafter(right_guess({"job/0": [*job.prompt_ids, *answer]})))
    assert rig.tokens() == answer
    done = rig.records()[-1]
    assert isinstance(done, Done)
    assert rig.runner.num_runs < 20


def test_drafters_of_a_small_round_hear_of_it_before_the_next_one_is_begun() -> None:
    """Where rounds overlap: first the verdict, then, beside the next round, the record."""
    rig = make_rig(overlap_from=4)
    rig.engine.submit(make_job(max_tokens=30))
    rig.step()
    rig.engine.receive([DraftAccepted("job/0", DRAFTER)], 0.0)
    rig.engine.take_outcome()
    told, begun = rig.step(), rig.step()
    assert isinstance(told.mail[DRAFTER][-1], Verdict)
    assert not told.records
    assert begun.records
    assert DRAFTER not in begun.mail


def test_drafters_of_a_large_round_hear_of_it_when_the_next_one_has_begun() -> None:
    """Their mail and the records are said together: the device does not wait for many mails."""
    rig = make_rig(overlap_from=1)
    rig.engine.submit(make_job(max_tokens=30))
    rig.step()
    rig.engine.receive([DraftAccepted("job/0", DRAFTER)], 0.0)
    rig.engine.take_outcome()
    landed, both = rig.step(), rig.step()
    assert not landed
    assert isinstance(both.mail[DRAFTER][-1], Verdict)
    assert both.records


class Talking(FakeFollower):
    """While it is waited for, the drafter says what it confirms, and three tokens more."""

    def __init__(self, own: FakeFollower) -> None:
        super().__init__(own._runner, own._sampler)
        self.answer: list[int] = []
        self.said: list[Message] = []

    def begin_verify(self, logits: Tensor, requests: Sequence[VerifyRequest]) -> Collect:
        collect = super().begin_verify(logits, requests)

        def talk() -> list[list[int]]:
            for request in requests:
                num_said = len(request.token_ids) - request.prompt_len
                num_more = len(request.draft_token_ids) + 1 + 3
                path = tuple(self.answer[num_said : num_said + num_more])
                self.said.append(DraftPath("job/0", len(request.token_ids), path))
            return collect()

        return talk


@pytest.mark.parametrize("overlap_from", [1, 4])
def test_guesses_that_come_while_a_round_computes_are_in_the_next_one(overlap_from: int) -> None:
    """However the next one is begun: what is received before a step counts in it."""
    rig = make_rig(overlap_from=overlap_from, wrap_follower=Talking)
    talking = rig.follower
    assert isinstance(talking, Talking)
    job = make_job(max_tokens=30)
    talking.answer = reference(rig, job)
    rig.engine.submit(job)
    while rig.engine.num_jobs:
        rig.engine.receive([DraftAccepted("job/0", DRAFTER), *talking.said], 0.0)
        talking.said.clear()
        rig.step()
    assert rig.tokens() == talking.answer
    # One token by the first round; three guesses and a token of its own by every other.
    assert rig.runner.num_runs == 1 + math.ceil(29 / 4)


def computing_rig() -> Rig:
    """A round of 10 ms under way, the first behind the prompt, for a session with a drafter."""
    rig = make_rig(overlap_from=1, profile=[Measured(1, 1, 0.010)])
    rig.engine.submit(make_job(max_tokens=30))
    rig.step()
    rig.engine.receive([DraftAccepted("job/0", DRAFTER)], 0.0)
    while rig.runner.num_runs < 2:
        rig.step()
    return rig


def test_a_round_is_not_waited_for_as_long_as_news_may_come() -> None:
    """Nearly to its end, if somebody guesses: meanwhile what comes can be received."""
    rig = computing_rig()
    started_s, num_pauses = rig.clock.monotonic_s(), 0
    while (pause := rig.engine.step()).seconds:
        num_pauses += 1
        rig.clock.advance(min(pause.seconds, 0.002))  # something has come
    assert num_pauses == 4
    assert 0.007 < rig.clock.monotonic_s() - started_s < 0.009
    assert rig.engine.totals.num_generation_tokens == 1  # the prompt's round is booked, no other


def test_a_round_that_takes_longer_is_asked_whether_it_is_over() -> None:
    """And never waited for: news are taken in until it is."""
    rig = computing_rig()
    rig.follower.num_asks = 3
    rig.clock.advance(0.010)
    assert [rig.engine.step().seconds for _ in range(4)] == [POLL_S, POLL_S, POLL_S, 0.0]
    assert rig.runner.num_runs == 2
    rig.engine.step()
    assert rig.runner.num_runs == 3


def test_what_a_prompt_takes_is_not_known() -> None:
    """The round is asked from the start."""
    rig = computing_rig()
    rig.engine.submit(make_job("other", prompt=range(7), max_tokens=3))
    rig.follower.num_asks = 1
    while rig.runner.num_runs < 3:
        rig.step()
    assert rig.engine.num_running == 2
    assert [rig.engine.step().seconds for _ in range(2)] == [POLL_S, 0.0]


def test_nobody_listens_where_nobody_guesses() -> None:
    """The round is waited for at once."""
    rig = make_rig(overlap_from=1, profile=[Measured(1, 1, 0.010)])
    rig.follower.num_asks = 1
    rig.engine.submit(make_job(max_tokens=30))
    assert [rig.engine.step().seconds for _ in range(6)] == [0.0] * 6


def test_a_round_that_never_ends_is_waited_for_in_the_end() -> None:
    """Asking for ever would look like progress, and a GPU that hangs would never be given up."""
    rig = computing_rig()
    rig.follower.num_asks = sys.maxsize
    started_s = rig.clock.monotonic_s()
    while (pause := rig.engine.step()).seconds:
        rig.clock.advance(pause.seconds)
        assert rig.clock.monotonic_s() - started_s < 1.0  # the least that `--hang-s` may be
    assert rig.clock.monotonic_s() - started_s > 0.010  # no earlier than it may well be over
