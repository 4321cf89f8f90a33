"""draft_worker/session.py: what verdicts do to a main chain and its branches."""

from collections.abc import Sequence

import msgspec

from draft_worker.confidence import Confidence, Guess
from draft_worker.session import DraftSession
from shared.engine.blocks import BlockPool
from tests.draft_worker.builders import make_request

POOL_BLOCKS = 32


def make_session(guesses: Sequence[int] = (10, 11, 12, 13)) -> tuple[BlockPool, DraftSession]:
    """A session of three confirmed tokens, all computed, and some guesses with runner-up 90, 91."""
    pool = BlockPool(POOL_BLOCKS, 4)
    request = make_request()
    table = pool.open(request.token_ids)
    session = DraftSession(request, table, Confidence())
    for token_id in guesses:
        session.main.span(8)
        session.main.push(Guess([token_id, 90, 91], 0.5, 0.7))
    return pool, session


def test_confirmed_guesses_only_advance() -> None:
    """Nothing is cut, nothing is computed again."""
    _, session = make_session()
    num_computed = session.main.num_computed
    session.confirm((10, 11))
    assert (session.num_confirmed, session.num_ahead) == (5, 2)
    assert [guess.token_ids[0] for guess in session.main.guesses] == [12, 13]
    assert session.main.num_computed == num_computed


def test_a_correction_cuts_back_to_what_is_right() -> None:
    """The cache keeps what was confirmed; the corrected token is to be computed."""
    _, session = make_session()
    session.confirm((10, 50))
    assert session.main.token_ids == [1, 2, 3, 10, 50]
    assert (session.main.num_computed, session.num_ahead) == (4, 0)
    assert (session.num_misses, session.num_covered) == (1, 0)


def test_more_than_was_guessed_is_appended() -> None:
    """The bonus token and what a plain round decoded meanwhile."""
    _, session = make_session((10,))
    session.confirm((10, 20, 21))
    assert session.main.token_ids == [1, 2, 3, 10, 20, 21]
    assert (session.num_ahead, session.main.num_pending) == (0, 3)


def test_a_branch_takes_over_and_the_others_go() -> None:
    """The corrected token's branch is the main chain now; every other block is given back."""
    pool, session = make_session()
    for position, token_id in ((3, 90), (4, 90), (4, 91)):
        session.fork(position, token_id)
    branch = session.branches[4, 91]
    branch.span(1)
    branch.push(Guess([70, 71], 1.0, 0.9))
    session.confirm((10, 91))
    assert session.main is branch
    assert session.main.token_ids == [1, 2, 3, 10, 91, 70]
    assert (session.branches, session.num_ahead, session.num_covered) == ({}, 1, 1)
    session.release()
    assert pool.usage == 0.0


def test_branches_below_the_confirmed_tokens_go() -> None:
    """A position that is decided has no alternatives; later ones keep theirs."""
    _, session = make_session()
    session.fork(3, 90)
    session.fork(5, 90)
    session.confirm((10,))
    assert list(session.branches) == [(5, 90)]


def test_what_follows_a_takeover_in_the_same_verdict_is_compared_with_the_branch() -> None:
    """A verified branch may itself be confirmed further, or corrected."""
    _, session = make_session()
    session.fork(3, 90)
    branch = session.branches[3, 90]
    for token_id in (70, 71):
        branch.span(1)
        branch.push(Guess([token_id, 8], 1.0, 0.9))
    session.confirm((90, 70, 99))
    assert session.main is branch
    assert session.main.token_ids == [1, 2, 3, 90, 70, 99]
    assert session.main.num_computed == 5


def test_the_end_of_a_sequence_is_not_guessed_beyond() -> None:
    """A stop token ends a chain, unless it is the prompt's own."""
    _, session = make_session(())
    stopping = msgspec.structs.replace(
        make_request(), sampling=msgspec.structs.replace(session.params, stop_token_ids=(3, 10))
    )
    pool = BlockPool(POOL_BLOCKS, 4)
    session = DraftSession(stopping, pool.open(stopping.token_ids), Confidence())
    assert session.can_grow(session.main, 4)
    session.main.span(8)
    session.main.push(Guess([10], 1.0, 0.9))
    assert not session.can_grow(session.main, 4)


def test_resynchronising_keeps_guesses_that_agree() -> None:
    """A repeated request that knows more is a verdict; one that disagrees is another session."""
    _, session = make_session()
    longer = make_request(token_ids=(1, 2, 3, 10), prompt_len=3)
    assert session.resync(longer)
    assert (session.num_confirmed, session.num_ahead, session.main.num_sent) == (4, 3, 4)
    assert not session.resync(make_request(token_ids=(1, 2, 3), prompt_len=3))
    assert not session.resync(make_request(token_ids=(1, 2, 3, 11), prompt_len=3))
    assert not session.resync(msgspec.structs.replace(longer, prompt_len=4))
