"""Drafters that lie, stall, repeat and shout: the tokens stay the target's own."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable, Sequence

import pytest

from shared.bus.connection import Bus
from shared.bus.mail import DraftBoard, post
from shared.protocol.keys import Keys
from shared.protocol.messages import (
    DraftAccepted,
    DraftClosed,
    DraftPath,
    DraftRequest,
    Message,
    Verdict,
)
from tests.e2e.reference import plain_tokens
from tests.e2e.system import System, checked_tokens
from tests.e2e.test_faults import bodies

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]

ME = "draft:hostile"
Guess = Callable[[DraftRequest, random.Random], Sequence[Message]]


def wrong(request: DraftRequest, chance: random.Random) -> Sequence[Message]:
    """Real ids at the right place, at random."""
    ids = tuple(chance.randrange(4_096) for _ in range(8))
    base = len(request.token_ids) + chance.randrange(200)
    return [DraftPath(request.session_id, base, ids)]


def out_of_vocabulary(request: DraftRequest, chance: random.Random) -> Sequence[Message]:
    """Ids that would index past every table."""
    base = len(request.token_ids) + chance.randrange(200)
    return [DraftPath(request.session_id, base, (chance.choice([-1, 4_096, 2**31, -(2**40)]),) * 4)]


def endless(request: DraftRequest, chance: random.Random) -> Sequence[Message]:
    """A path of a million tokens."""
    base = len(request.token_ids) + chance.randrange(50)
    return [DraftPath(request.session_id, base, (7,) * 1_000_000)]


def misdirected(request: DraftRequest, chance: random.Random) -> Sequence[Message]:
    """Sessions that do not exist, bases from nowhere, messages that are not a drafter's to send."""
    return [
        DraftPath("no-such-session/0", 3, (1, 2)),
        DraftPath(request.session_id, -5, (1, 2)),
        DraftPath(request.session_id, 2**40, (1, 2)),
        DraftPath(request.session_id, len(request.token_ids), ()),
        Verdict(request.session_id, chance.randrange(100), (1, 2, 3)),
        request,
        DraftAccepted(request.session_id, "draft:somebody-else"),
    ]


def flapping(request: DraftRequest, chance: random.Random) -> Sequence[Message]:
    """Accepts and closes the same session over and over, with a doubled path between."""
    path = wrong(request, chance)
    accepted, closed = DraftAccepted(request.session_id, ME), DraftClosed(request.session_id)
    return [accepted, *path, *path, closed, accepted]


@contextlib.asynccontextmanager
async def drafter(url: str, guess: Guess) -> AsyncIterator[None]:
    """A draft worker that takes every request and answers with what `guess` makes of it."""
    bus = await Bus.connect(url, keys=Keys(), worker_id=ME)
    board, chance = DraftBoard(bus), random.Random(7)

    async def serve() -> None:
        known: list[DraftRequest] = []
        while True:
            for request in await board.fetch(8, block_s=0.02):
                known.append(request)
                await post(bus, request.target_id, (DraftAccepted(request.session_id, ME),))
            for request in known[-16:]:
                await post(bus, request.target_id, tuple(guess(request, chance)))
                garbage = chance.randbytes(chance.randrange(64))
                inbox = bus.keys.inbox(request.target_id)
                await bus.call("XADD", inbox, "MAXLEN", "~", 1_000, "*", "m", garbage)

    task = asyncio.create_task(serve())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await bus.close()


@pytest.mark.parametrize("guess", [wrong, out_of_vocabulary, endless, misdirected, flapping])
async def test_hostile_guesses_change_no_token(system: System, guess: Guess) -> None:
    """Four streams beside such a drafter: token-exact, and the worker lives on."""
    target = system.target("--speculation", "on")
    async with drafter(system.server.url, guess):
        jobs = {
            system.submit(body | {"max_tokens": 80}): body | {"max_tokens": 80}
            for body in bodies(4)
        }
        await asyncio.to_thread(system.wait_end, list(jobs))
    for job_id, body in jobs.items():
        assert checked_tokens(system.log(job_id)) == plain_tokens(body)
    assert target.returncode is None
