"""The scheduler: first come, first served, no block lost, nothing waiting for ever."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.engine.blocks import BlockPool
from shared.protocol.sampling import SamplingParams
from target_worker.scheduler import DoesNotFit, Row, Scheduler
from target_worker.session import Session
from tests.target_worker.engines import LetterText


def make_session(num_tokens: int, *, first: int = 0, max_len: int = 1_000) -> Session:
    return Session(
        f"s{num_tokens}/{first}",
        [(first + i) % 50 for i in range(num_tokens)],
        prompt_len=num_tokens,
        max_len=max_len,
        params=SamplingParams(seed=1),
        text=LetterText(),
        vocab_size=50,
    )


def make_scheduler(num_blocks: int = 16, **limits: int) -> Scheduler:
    limits = {"max_num_seqs": 4, "max_batched_tokens": 12, **limits}
    return Scheduler(BlockPool(num_blocks, 4), **limits)


def plan(scheduler: Scheduler) -> list[Row]:
    scheduler.start_waiting()
    return scheduler.plan()


def finish(scheduler: Scheduler, rows: list[Row], token_id: int = 7) -> None:
    """Every sampled row confirms its guesses and one token more."""
    for row in rows:
        confirmed = [*row.draft_token_ids, token_id] if row.is_sampled else []
        row.session.accept(confirmed)
        scheduler.computed(row, max(0, len(confirmed) - 1))


def test_a_long_prompt_is_computed_in_chunks_beside_decoding() -> None:
    """Rows stay within the budget; only the last chunk wants logits."""
    scheduler = make_scheduler()
    scheduler.add(make_session(3))
    finish(scheduler, plan(scheduler))
    scheduler.add(make_session(20, first=30))
    shapes = []
    for _ in range(3):
        rows = plan(scheduler)
        shapes.append([(row.num_tokens, row.is_sampled) for row in rows])
        finish(scheduler, rows)
    assert shapes == [
        [(1, True), (11, False)],
        [(1, True), (9, True)],
        [(1, True), (1, True)],
    ]


def test_a_span_holds_confirmed_tokens_then_guesses() -> None:
    """Its logits are those of the last confirmed token and of each guess."""
    scheduler = make_scheduler()
    session = make_session(5)
    scheduler.add(session)
    finish(scheduler, plan(scheduler))
    (row,) = plan(scheduler)
    scheduler.add_draft(row, [8, 9])
    span = row.span()
    assert (list(span.token_ids), span.start, span.num_logits) == ([7, 8, 9], 5, 3)
    assert len(span.block_ids) == 2


def test_no_more_sessions_than_places() -> None:
    """The others wait in order of arrival."""
    scheduler = make_scheduler(num_blocks=64, max_num_seqs=2)
    sessions = [make_session(3, first=i) for i in range(4)]
    for session in sessions:
        scheduler.add(session)
    plan(scheduler)
    assert scheduler.running == sessions[:2]
    scheduler.remove(sessions[0])
    plan(scheduler)
    assert scheduler.running == sessions[1:3]


def test_the_last_one_leaves_when_blocks_run_out() -> None:
    """And comes back when there is room, at its place, with what it had confirmed."""
    scheduler = make_scheduler(num_blocks=5)
    first, last = make_session(7), make_session(7, first=20)
    scheduler.add(first)
    scheduler.add(last)
    while not scheduler.num_preemptions:
        finish(scheduler, plan(scheduler))
    assert (scheduler.running, scheduler.waiting) == ([first], [last])
    assert last.num_computed == 0
    scheduler.remove(first)
    plan(scheduler)
    assert scheduler.running == [last]
    assert last.num_output > 0


def test_guesses_take_free_room_only() -> None:
    """They are cut to what is free, and nobody leaves for them."""
    scheduler = make_scheduler(num_blocks=2)
    session = make_session(5)
    scheduler.add(session)
    finish(scheduler, plan(scheduler))
    (row,) = plan(scheduler)
    scheduler.add_draft(row, list(range(10)))
    assert row.draft_token_ids == [0, 1]
    finish(scheduler, [row])
    with pytest.raises(DoesNotFit):
        plan(scheduler)


def test_a_session_larger_than_the_cache_is_named() -> None:
    """Alone and too large: whoever is to blame is known."""
    scheduler = make_scheduler(num_blocks=2)
    scheduler.add(make_session(20))
    with pytest.raises(DoesNotFit) as caught:
        scheduler.start_waiting()
    assert caught.value.session.session_id == "s20/0"


def test_choices_wait_for_the_prompt_they_share() -> None:
    """The second choice starts when the first has computed the prompt, and finds it cached."""
    scheduler = make_scheduler(num_blocks=64)
    leader, follower = make_session(20), make_session(20)
    follower.leader = leader
    scheduler.add(leader)
    scheduler.add(follower)
    finish(scheduler, plan(scheduler))
    assert scheduler.waiting == [follower]
    finish(scheduler, plan(scheduler))
    plan(scheduler)
    assert follower.num_cached == 16


def test_nothing_is_shared_before_logits_were_seen() -> None:
    """A prefill chunk may hold anything; the whole prompt counts when its last row was usable."""
    scheduler = make_scheduler(num_blocks=64)
    scheduler.add(make_session(20))
    finish(scheduler, plan(scheduler))
    assert scheduler.pool.open(range(21)).num_cached_tokens == 0
    finish(scheduler, plan(scheduler))
    assert scheduler.pool.open(range(21)).num_cached_tokens == 20


def test_removing_twice_is_harmless() -> None:
    """Running or waiting, all blocks are back."""
    scheduler = make_scheduler()
    sessions = [make_session(3), make_session(4)]
    for session in sessions:
        scheduler.add(session)
    plan(scheduler)
    for session in [*sessions, *sessions]:
        scheduler.remove(session)
    assert scheduler.pool.num_free == 16
    assert scheduler.running == scheduler.waiting == []


@given(
    num_blocks=st.integers(8, 20),
    sessions=st.lists(st.tuples(st.integers(1, 20), st.integers(1, 10)), min_size=1, max_size=6),
    guesses=st.integers(0, 5),
    arrivals=st.integers(1, 4),
)
def test_every_session_ends_in_any_pool_that_holds_one(
    num_blocks: int, sessions: list[tuple[int, int]], guesses: int, arrivals: int
) -> None:
    """Chunks, preemption, guesses: no deadlock, the budget is kept, no block is lost."""
    scheduler = make_scheduler(num_blocks, max_num_seqs=3)
    waiting = [
        make_session(num_tokens, first=7 * index, max_len=num_tokens + num_output)
        for index, (num_tokens, num_output) in enumerate(sessions)
    ]
    left = len(waiting)
    for _ in range(2_000):
        for session in waiting[:arrivals]:
            scheduler.add(session)
        del waiting[:arrivals]
        rows = plan(scheduler)
        for row in rows:
            if row.is_sampled:
                room = row.session.max_len - len(row.session.token_ids) - 1
                scheduler.add_draft(row, list(range(min(guesses, room))))
        assert sum(row.num_tokens for row in rows) <= scheduler.max_batched_tokens
        for row in rows:
            assert row.span().start + len(row.span().token_ids) <= 4 * len(row.span().block_ids)
        finish(scheduler, rows)
        for row in rows:
            if row.session.reason is not None:
                scheduler.remove(row.session)
                left -= 1
        if not left:
            break
    assert not left
    assert scheduler.pool.num_free == num_blocks


def test_room_of_wrong_guesses_is_given_back() -> None:
    """After a round a session holds what its confirmed tokens need, no more."""
    scheduler = make_scheduler()
    session = make_session(5)
    scheduler.add(session)
    finish(scheduler, plan(scheduler))
    (row,) = plan(scheduler)
    scheduler.add_draft(row, [8] * 9)
    session.accept([7])  # all wrong
    scheduler.computed(row, 0)
    assert session.table is not None
    assert len(session.table.block_ids) == 2
    assert (session.num_computed, len(session.token_ids)) == (6, 7)
