"""Commits: in order, together while the server is busy, again until it answers."""

import asyncio

import pytest

from shared.bus.jobs import Claim
from shared.bus.log import Append, CommitReply, CommitStatus
from shared.common.errors import Unavailable
from shared.protocol.messages import DraftClosed, DraftRequest
from shared.protocol.records import Failed, Tokens
from shared.protocol.sampling import SamplingParams
from target_worker import commits
from target_worker.commits import Committer
from target_worker.outcome import Outcome
from tests.bus_worker import until

CLAIM = Claim("job", "jobs", "1-0", 1, 7, is_cancelled=False, deliveries=1, lengths=())
REQUEST = DraftRequest("job/0", "target:a", 1, "w", 1, 9, (1,), SamplingParams(seed=1))


class Server:
    """Stands for log and board: remembers what it got, fails as often as told."""

    def __init__(self) -> None:
        self.commits: list[tuple[list[Append], list[tuple[str, tuple[object, ...]]]]] = []
        self.requests: list[DraftRequest] = []
        self.num_failures = 0
        self.gate = asyncio.Event()
        self.gate.set()

    async def commit(
        self, appends: list[Append], *, mail: list[tuple[str, tuple[object, ...]]]
    ) -> list[CommitReply]:
        await self.gate.wait()
        self.commits.append((appends, mail))
        if self.num_failures:
            self.num_failures -= 1
            raise Unavailable("away")
        return [CommitReply(CommitStatus.OK, is_cancelled=False) for _ in appends]

    async def post(self, request: DraftRequest) -> None:
        if self.num_failures:
            raise Unavailable("away")
        self.requests.append(request)


class Desk:
    """A committer at work."""

    def __init__(self) -> None:
        self.server = Server()
        self.answers: list[tuple[str, bool]] = []
        self.num_committed = 0
        self.committer = Committer(
            self.server,  # type: ignore[arg-type]
            self.server,  # type: ignore[arg-type]
            answered=lambda claim, _, is_over: self.answers.append((claim.job_id, is_over)),
            committed=self._count,
        )

    def _count(self, num: int) -> None:
        self.num_committed += num


@pytest.fixture
def desk(monkeypatch: pytest.MonkeyPatch) -> Desk:
    """A committer that does not wait long between tries."""
    monkeypatch.setattr(commits, "RETRY_S", 0.001)
    return Desk()


def tokens(offset: int) -> Outcome:
    outcome = Outcome()
    outcome.append(CLAIM, [Tokens(0, offset, (offset,), "x")])
    return outcome


async def test_outcomes_collect_while_a_commit_is_under_way(desk: Desk) -> None:
    """Three rounds, two writes, the order kept; all of them count as committed."""
    task = asyncio.create_task(desk.committer.run())
    desk.server.gate.clear()
    desk.committer.push(tokens(0))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    desk.committer.push(tokens(1))
    desk.committer.push(tokens(2))
    desk.server.gate.set()
    await desk.committer.flushed()
    task.cancel()
    written = [appends[0].records for appends, _ in desk.server.commits]
    assert [[r.offset for r in rs if isinstance(r, Tokens)] for rs in written] == [[0], [1, 2]]
    assert desk.num_committed == 3


async def test_a_server_that_is_away_gets_the_very_same_write_again(desk: Desk) -> None:
    """Nothing is added to it, so that the server can tell a repetition."""
    desk.server.num_failures = 3
    task = asyncio.create_task(desk.committer.run())
    desk.committer.push(tokens(0))
    await asyncio.sleep(0)
    desk.committer.push(tokens(1))
    await desk.committer.flushed()
    task.cancel()
    first = [appends for appends, _ in desk.server.commits[:4]]
    assert all(appends == first[0] for appends in first)
    assert len(desk.server.commits) == 5


async def test_terminal_records_and_mail_go_along(desk: Desk) -> None:
    """The answer says that the job is over; own records do not count as rounds."""
    task = asyncio.create_task(desk.committer.run())
    outcome = tokens(0)
    outcome.send("draft:a", DraftClosed("job/0"))
    outcome.requests.append(REQUEST)
    desk.committer.push(outcome)
    desk.committer.write(CLAIM, Failed("cancelled", "…"))

    async def answered() -> bool:
        return len(desk.answers) == 1

    await until(answered)
    await desk.committer.flushed()
    desk.committer.write(CLAIM)
    await desk.committer.flushed()
    task.cancel()
    assert desk.answers == [("job", True), ("job", False)]
    assert desk.server.commits[0][1] == [("draft:a", (DraftClosed("job/0"),))]
    assert desk.server.requests == [REQUEST]
    assert desk.num_committed == 1


async def test_a_draft_request_that_is_lost_stops_nothing(desk: Desk) -> None:
    """It is asked again by and by."""
    task = asyncio.create_task(desk.committer.run())
    outcome = Outcome()
    outcome.requests.append(REQUEST)

    async def lose(request: DraftRequest) -> None:
        raise Unavailable(request.session_id)

    desk.server.post = lose  # type: ignore[method-assign]
    desk.committer.push(outcome)
    desk.committer.push(tokens(0))
    await desk.committer.flushed()
    task.cancel()
    assert desk.num_committed == 2
