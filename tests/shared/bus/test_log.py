"""The session log on a real server: what is appended, what is refused, who hears of it."""

import pytest

from shared.bus.log import Append, CommitStatus
from shared.bus.mail import Feed, Inbox
from shared.common.errors import PeerError
from shared.protocol.jobs import JobState
from shared.protocol.limits import INBOX_TTL_S, JOB_TTL_S, LOG_TTL_S, MAX_FOLLOWERS
from shared.protocol.messages import CancelNotice, DraftClosed
from shared.protocol.records import Failed, Finished, FinishReason, Record, Tokens
from tests.bus_worker import SEED, BusWorker, done, tokens
from tests.conftest import ConnectBus

pytestmark = pytest.mark.server

CANCELLED = Failed("cancelled", "the client left", None, 499)


async def test_tokens_are_appended_in_order(worker: BusWorker) -> None:
    """Records of one job come out of the log as they went in."""
    await worker.submit("j")
    claim = await worker.take()
    records = [tokens(0, 1, 2), tokens(2, 3), tokens(3, 4, 5, 6)]
    replies = [await worker.append(claim, record) for record in records]
    assert [reply.status for reply in replies] == [CommitStatus.OK] * 3
    assert await worker.records("j") == records
    info = await worker.log.info("j")
    assert info is not None
    assert (info.lengths, info.state, info.owner) == ((6,), JobState.RUNNING, "target:a")


async def test_many_jobs_in_one_commit_answer_one_by_one(worker: BusWorker) -> None:
    """One bad append in a round does not touch its neighbours."""
    for job_id in ("a", "b", "c"):
        await worker.submit(job_id)
    claims = [await worker.take() for _ in range(3)]
    offsets = [0, 7, 0]
    appends = [
        Append(claim, (tokens(offset, 9),)) for claim, offset in zip(claims, offsets, strict=True)
    ]
    replies = await worker.log.commit(appends)
    assert [reply.status for reply in replies] == ["ok", "conflict", "ok"]
    assert [len(await worker.records(job_id)) for job_id in ("a", "b", "c")] == [1, 0, 1]


async def test_a_repeated_append_is_made_once(worker: BusWorker) -> None:
    """The same append again, as after a lost reply, is answered as the first time and not made."""
    await worker.submit("j")
    claim = await worker.take()
    append = Append(claim, (tokens(0, 1, 2),))
    assert [r.status for r in await worker.log.commit([append, append])] == ["ok", "ok"]
    assert await worker.records("j") == [tokens(0, 1, 2)]


async def test_repeated_appends_of_two_choices_are_made_once(worker: BusWorker) -> None:
    """Two appends of one job in one round are both known when the whole round is sent again."""
    await worker.submit("j")
    claim = await worker.take(num_choices=2)
    round_ = [
        Append(claim, (tokens(0, 1), Finished(0, "x", FinishReason.LENGTH))),
        Append(claim, (tokens(0, 2, choice=1), done(choice=1, num_choices=2))),
    ]
    for _ in range(2):
        assert [r.status for r in await worker.log.commit(round_)] == ["ok", "ok"]
    assert len(await worker.records("j")) == 4


@pytest.mark.parametrize("offset", [1, 3], ids=["overlap", "gap"])
async def test_an_offset_that_does_not_fit_is_refused(worker: BusWorker, offset: int) -> None:
    """Offsets are dense: neither a gap nor a rewrite gets in."""
    await worker.submit("j")
    claim = await worker.take()
    await worker.append(claim, tokens(0, 1, 2))
    assert (await worker.append(claim, tokens(offset, 8))).status is CommitStatus.CONFLICT
    assert await worker.records("j") == [tokens(0, 1, 2)]


@pytest.mark.parametrize(
    "records",
    [
        (tokens(0, 1, choice=2),),
        (tokens(0, 1, choice=-1),),
        (Tokens(0, 0, (), "text without a token"),),
        (done(choice=0, num_choices=2),),
        (Finished(0, "", FinishReason.STOP), tokens(0, 1)),
        (Finished(0, "", FinishReason.STOP), Finished(0, "", FinishReason.STOP)),
        (Finished(0, "", FinishReason.STOP), Finished(1, "", FinishReason.STOP)),
        (CANCELLED, tokens(0, 1)),
        (CANCELLED, CANCELLED),
    ],
    ids=[
        "unknown choice",
        "negative choice",
        "no token",
        "done while a choice is open",
        "tokens after finished",
        "finished twice",
        "last choice finished, not done",
        "tokens after the end",
        "two ends",
    ],
)
async def test_records_that_make_no_log_are_refused_whole(
    worker: BusWorker, records: tuple[Record, ...]
) -> None:
    """All records of an append go in, or none: the server keeps the order of the log."""
    await worker.submit("j")
    claim = await worker.take(num_choices=2)
    reply = await worker.append(claim, tokens(0, 5, choice=1), *records)
    assert reply.status is CommitStatus.CONFLICT
    assert await worker.records("j") == []
    assert (await worker.append(claim, tokens(0, 5, choice=1))).status is CommitStatus.OK


async def test_an_old_epoch_is_fenced(worker: BusWorker, other: BusWorker) -> None:
    """A worker that slept through its lease writes nothing, not even what it wrote before."""
    await worker.submit("j")
    old = await worker.take()
    append = Append(old, (tokens(0, 1),))
    await worker.log.commit([append])
    await worker.die()
    (delivery,) = await other.rescue()
    new = await other.claim(delivery)
    assert new is not None
    assert (new.epoch, new.seed, new.lengths, new.deliveries) == (2, SEED, (1,), 2)
    assert (await worker.append(old, tokens(1, 2))).status is CommitStatus.FENCED
    assert (await worker.log.commit([append]))[0].status is CommitStatus.FENCED
    assert (await worker.append(old, CANCELLED)).status is CommitStatus.FENCED
    assert (await other.append(new, tokens(1, 3))).status is CommitStatus.OK
    assert await worker.records("j") == [tokens(0, 1), tokens(1, 3)]


@pytest.mark.parametrize("end", [done(), CANCELLED], ids=["done", "failed"])
async def test_the_end_acks_and_expires_in_the_same_step(worker: BusWorker, end: Record) -> None:
    """After the terminal record nothing is pending, nothing fits any more, and the keys expire."""
    await worker.submit("j")
    claim = await worker.take()
    assert (await worker.append(claim, tokens(0, 1), end)).status is CommitStatus.OK
    keys = worker.bus.keys
    assert (await worker.bus.call("XPENDING", keys.jobs(), "target"))[0] == 0
    for key in (keys.job("j"), keys.log("j")):
        assert LOG_TTL_S - 60 < await worker.bus.call("TTL", key) <= LOG_TTL_S
    assert (await worker.append(claim, tokens(0, 1), end)).status is CommitStatus.OK  # a repeat
    assert (await worker.append(claim, tokens(1, 2))).status is CommitStatus.GONE
    assert (await worker.append(claim)).status is CommitStatus.GONE
    assert await worker.records("j") == [tokens(0, 1), end]


async def test_running_jobs_keep_their_keys_for_a_day(worker: BusWorker) -> None:
    """An abandoned job leaves no keys for ever, and a long one does not lose its own."""
    await worker.submit("j")
    claim = await worker.take()
    await worker.append(claim, tokens(0, 1))
    keys = worker.bus.keys
    for key in (keys.job("j"), keys.log("j")):
        assert JOB_TTL_S - 60 < await worker.bus.call("TTL", key) <= JOB_TTL_S
        await worker.bus.call("EXPIRE", key, JOB_TTL_S // 3)
    await worker.append(claim, tokens(1, *range(300)))
    for key in (keys.job("j"), keys.log("j")):
        assert await worker.bus.call("TTL", key) > JOB_TTL_S // 2


async def test_a_commit_to_an_unknown_job_is_gone(worker: BusWorker) -> None:
    """A server that lost everything answers so; the worker drops the job."""
    await worker.submit("j")
    claim = await worker.take()
    await worker.bus.call("FLUSHALL")
    assert (await worker.append(claim, tokens(0, 1))).status is CommitStatus.GONE
    assert await worker.log.info("j") is None


async def test_keys_of_another_type_end_one_job_only(worker: BusWorker) -> None:
    """Somebody else's value under a job's name is that job's end, not the round's."""
    for job_id in ("bad", "good"):
        await worker.submit(job_id)
    claims = [await worker.take() for _ in range(2)]
    await worker.bus.call("SET", worker.bus.keys.log("bad"), "not a stream")
    replies = await worker.log.commit([Append(claim, (tokens(0, 1),)) for claim in claims])
    assert [reply.status for reply in replies] == ["gone", "ok"]


async def test_mail_goes_out_with_the_commit(worker: BusWorker, connect_bus: ConnectBus) -> None:
    """Messages of a round travel in the same write, and arrive in order."""
    await worker.submit("j")
    claim = await worker.take()
    inbox = Inbox(await connect_bus("draft:d"))
    mail = [("draft:d", (DraftClosed("j/0"), DraftClosed("j/1")))]
    replies = await worker.log.commit([Append(claim, (tokens(0, 1),))], mail=mail)
    assert len(replies) == 1
    assert await inbox.read(block_s=1.0) == [DraftClosed("j/0"), DraftClosed("j/1")]
    assert await worker.log.commit([]) == []


async def test_cancel_reaches_the_owner_twice(worker: BusWorker, other: BusWorker) -> None:
    """As a notice at once, and as a flag with the next commit."""
    await worker.submit("j")
    claim = await worker.take()
    assert await other.log.cancel("j")
    assert await Inbox(worker.bus).read(block_s=1.0) == [CancelNotice("j")]
    reply = await worker.append(claim, tokens(0, 1))
    assert (reply.status, reply.is_cancelled) == (CommitStatus.OK, True)
    assert (await worker.append(claim, CANCELLED)).status is CommitStatus.OK
    assert not await other.log.cancel("j")


@pytest.mark.parametrize("moment", ["before submission", "before the claim", "after the claim"])
async def test_a_plain_hset_cancels(worker: BusWorker, moment: str) -> None:
    """`HSET {ID}:job cancel 1` works at any moment, from any client."""
    job = worker.bus.keys.job("j")
    if moment == "before submission":
        await worker.bus.call("HSET", job, "cancel", "1")
    await worker.submit("j")
    if moment == "before the claim":
        await worker.bus.call("HSET", job, "cancel", "1")
    claim = await worker.take()
    if moment == "after the claim":
        assert not claim.is_cancelled
        await worker.bus.call("HSET", job, "cancel", "1")
    assert (await worker.append(claim)).is_cancelled


async def test_cancelling_an_unknown_job_leaves_nothing_for_ever(worker: BusWorker) -> None:
    """The flag may come before the job does; without one it expires."""
    assert await worker.log.cancel("never")
    assert 0 < await worker.bus.call("TTL", worker.bus.keys.job("never")) <= JOB_TTL_S


async def test_followers_get_copies_until_they_leave(
    worker: BusWorker, connect_bus: ConnectBus
) -> None:
    """The submitter's gateway follows from the start, others when they ask."""
    gateways = [await connect_bus(f"gateway:{name}") for name in "xy"]
    feeds = [Feed(gateway) for gateway in gateways]
    await worker.submit("j", reply="gateway:x")
    claim = await worker.take()
    await worker.append(claim, tokens(0, 1))
    assert await worker.log.follow("j", "gateway:y")
    await worker.append(claim, tokens(1, 2))
    await worker.log.unfollow("j", "gateway:x")
    await worker.append(claim, tokens(2, 3))
    first, second = [await feed.read(block_s=1.0) for feed in feeds]
    assert [entry.record for entry in first] == [tokens(0, 1), tokens(1, 2)]
    assert [entry.record for entry in second] == [tokens(1, 2), tokens(2, 3)]
    log = dict(await worker.log.read("j"))
    assert all(log[entry.entry_id] == entry.record for entry in first + second)
    assert {entry.job_id for entry in first} == {"j"}


async def test_the_feed_of_a_gone_gateway_goes_away(worker: BusWorker) -> None:
    """Nobody reads it, so at the latest the job's end gives it a time to live."""
    await worker.submit("j", reply="gateway:gone")
    claim = await worker.take()
    await worker.append(claim, tokens(0, 1))
    await worker.append(claim, done())
    feed = worker.bus.keys.inbox("gateway:gone")
    assert 0 < await worker.bus.call("TTL", feed) <= INBOX_TTL_S


async def test_followers_are_bounded(worker: BusWorker) -> None:
    """Beyond MAX_FOLLOWERS the one that came first is dropped; asking twice counts once."""
    await worker.submit("j", reply="gateway:0")
    for number in range(1, MAX_FOLLOWERS + 1):
        assert await worker.log.follow("j", f"gateway:{number}")
        assert await worker.log.follow("j", f"gateway:{number}")
    follow = await worker.bus.call("HGET", worker.bus.keys.job("j"), "follow")
    assert follow.decode().split(",") == [f"gateway:{n}" for n in range(MAX_FOLLOWERS, 0, -1)]
    assert not await worker.log.follow("unknown", "gateway:0")


async def test_the_log_is_read_from_a_cursor(worker: BusWorker) -> None:
    """`after` is the last entry seen; `count` bounds the answer."""
    await worker.submit("j")
    claim = await worker.take()
    await worker.append(claim, *(tokens(offset, offset) for offset in range(5)))
    rows = await worker.log.read("j")
    assert [record for _, record in await worker.log.read("j", after=rows[2][0])] == [
        tokens(3, 3),
        tokens(4, 4),
    ]
    assert await worker.log.read("j", after=rows[0][0], count=2) == rows[1:3]
    assert await worker.log.read("unknown") == []


async def test_a_takeover_reads_the_tokens_of_each_choice(worker: BusWorker) -> None:
    """Every choice's ids, in order, also of a choice that has none yet."""
    await worker.submit("j")
    claim = await worker.take(num_choices=4)
    await worker.append(claim, tokens(0, 1, 2), tokens(0, 9, choice=2), tokens(2, 3))
    assert await worker.log.choices("j") == [(1, 2, 3), (), (9,), ()]
    assert await worker.log.choices("unknown") == []


async def test_a_forged_log_is_noticed(worker: BusWorker) -> None:
    """A record that somebody else slipped in does not become part of an answer."""
    await worker.submit("j")
    await worker.take()
    log = worker.bus.keys.log("j")
    forged = ("v", "1", "ev", "tokens", "choice", "0", "off", "5", "ids", "1", "text", "x")
    await worker.bus.call("XADD", log, "*", *forged)
    with pytest.raises(PeerError, match="offset 5 after 0"):
        await worker.log.choices("j")
    await worker.submit("k")
    await worker.take()
    forged = ("v", "1", "ev", "tokens", "choice", "1", "off", "0", "ids", "1", "text", "x")
    await worker.bus.call("XADD", worker.bus.keys.log("k"), "*", *forged)
    with pytest.raises(PeerError, match="choice 1 of 1"):
        await worker.log.choices("k")
    await worker.bus.call("XADD", log, "*", "v", "2", "ev", "tokens")
    with pytest.raises(PeerError, match="version 2"):
        await worker.log.read("j")


async def test_info_of_each_state(worker: BusWorker) -> None:
    """Unclaimed, running, done: what a gateway can say about a job."""
    await worker.submit("j", tenant="acme", reply="gateway:g")
    before = await worker.log.info("j")
    assert before is not None
    assert (before.state, before.seed, before.epoch, before.lengths) == (None, None, 0, ())
    assert (before.body, before.tenant, before.reply) == (b"{}", "acme", "gateway:g")
    claim = await worker.take()
    during = await worker.log.info("j")
    assert during is not None
    assert (during.state, during.seed, during.epoch, during.lengths) == ("running", SEED, 1, (0,))
    await worker.append(claim, done())
    after = await worker.log.info("j")
    assert after is not None
    assert (after.state, after.owner) == (JobState.DONE, "")
