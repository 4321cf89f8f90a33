"""Entries that nobody can serve are set aside, and never stand in the way of others."""

import itertools

import pytest

from shared.bus.link import Reply
from shared.common.errors import ClientError
from shared.protocol.jobs import JobState, parse_entry
from shared.protocol.limits import DEAD_BODY_BYTES, MAX_BODY_BYTES, MAX_DELIVERIES
from shared.protocol.records import Failed
from tests.bus_worker import BusWorker, tokens
from tests.shared.bus.conftest import StartWorker

pytestmark = pytest.mark.server


async def dead_letters(worker: BusWorker) -> list[dict[bytes, bytes]]:
    rows: Reply = await worker.bus.call("XRANGE", worker.bus.keys.dead, "-", "+")
    return [dict(zip(flat[::2], flat[1::2], strict=True)) for _, flat in rows]


async def test_a_job_that_kills_its_workers_is_set_aside(start_worker: StartWorker) -> None:
    """After MAX_DELIVERIES claims the next one ends the job, visibly, and keeps a copy."""
    workers = [await start_worker(f"target:{number}") for number in range(MAX_DELIVERIES + 1)]
    await workers[0].submit("j")
    await workers[0].take()
    for dead, rescuer in itertools.pairwise(workers):
        await dead.die()
        (delivery,) = await rescuer.rescue()
        claim = await rescuer.claim(delivery)
    assert claim is None
    last = workers[-1]
    (record,) = await last.records("j")
    assert isinstance(record, Failed)
    assert (record.code, record.status) == ("too_many_deliveries", 500)
    (letter,) = await dead_letters(last)
    assert (letter[b"id"], letter[b"reason"]) == (b"j", b"too_many_deliveries")
    assert await last.num_pending() == 0
    info = await last.log.info("j")
    assert info is not None
    assert info.state is JobState.FAILED


HOSTILE = {
    "no body": {"id": "j"},
    "id of bytes": {"id": b"\xff\xfe", "body": "{}"},
    "id with braces": {"id": "a}b{", "body": "{}"},
    "id too long": {"id": "x" * 129, "body": "{}"},
    "body too large": {"id": "j", "body": b"x" * (MAX_BODY_BYTES + 1)},
    "other version": {"v": "2", "id": "j", "body": "{}"},
    "deadline": {"id": "j", "body": "{}", "deadline_ms": "soon"},
    "reply with spaces": {"id": "j", "body": "{}", "reply": "gateway:g * m x"},
    "only noise": {b"\x00\xff": b"\xff" * 1_000},
}


@pytest.mark.parametrize("fields", HOSTILE.values(), ids=HOSTILE.keys())
async def test_a_hostile_entry_is_set_aside(
    worker: BusWorker, fields: dict[str | bytes, str | bytes]
) -> None:
    """It goes to the dead letters, the log it names ends with an error, and others go on."""
    flat = [part for field in fields.items() for part in field]
    await worker.bus.call("XADD", worker.bus.keys.jobs(), "*", *flat)
    await worker.submit("good")
    bad, good = await worker.fetch(2)
    with pytest.raises(ClientError) as caught:
        parse_entry(bad.entry_id, bad.fields)
    error = Failed(caught.value.code, caught.value.message, caught.value.param, 400)
    await worker.jobs.bury(bad, reason="unreadable", error=error)
    await worker.jobs.bury(bad, reason="unreadable", error=error)  # a repeat
    (letter,) = await dead_letters(worker)
    assert letter[b"reason"] == b"unreadable"
    assert letter[b"entry"].decode() == bad.entry_id
    assert len(letter[b"body"]) <= DEAD_BODY_BYTES
    assert int(letter[b"body_bytes"]) == len(fields.get("body", ""))
    if letter[b"id"]:
        assert await worker.records(letter[b"id"].decode()) == [error]
    assert await worker.claim(good) is not None
    assert await worker.num_pending() == 1


async def test_a_hostile_entry_cannot_end_another_job(worker: BusWorker) -> None:
    """A bad entry that borrows a running job's id is set aside alone."""
    await worker.submit("j")
    claim = await worker.take()
    await worker.bus.call("XADD", worker.bus.keys.jobs(), "*", "id", "j", "v", "9", "body", "{}")
    (bad,) = await worker.fetch()
    await worker.jobs.bury(bad, reason="unreadable", error=Failed("x", "y"))
    assert await worker.records("j") == []
    assert (await worker.append(claim, tokens(0, 1))).status == "ok"


async def test_an_owner_may_bury_its_own_job(worker: BusWorker, other: BusWorker) -> None:
    """A job that its owner finds hopeless ends with the error; nobody else can do that to it."""
    await worker.submit("j")
    (delivery,) = await worker.fetch()
    await worker.claim(delivery)
    await worker.jobs.bury(delivery, reason="hopeless", error=Failed("x", "y"))
    assert await worker.records("j") == [Failed("x", "y")]
    await worker.submit("k")
    (delivery,) = await worker.fetch()
    await worker.claim(delivery)
    await other.jobs.bury(delivery, reason="none of its business", error=Failed("x", "y"))
    assert await worker.records("k") == []


@pytest.mark.parametrize("key", ["job", "log"])
async def test_a_job_whose_keys_are_taken_is_set_aside(worker: BusWorker, key: str) -> None:
    """Keys of another type under the job's name: dead letter, no error for the worker."""
    keys = worker.bus.keys
    await worker.bus.call("SET", keys.job("j") if key == "job" else keys.log("j"), "mine")
    await worker.bus.call("XADD", keys.jobs(), "*", "id", "j", "body", "{}")
    (delivery,) = await worker.fetch()
    assert await worker.claim(delivery) is None
    (letter,) = await dead_letters(worker)
    assert letter[b"reason"] == b"keys_in_use"
    assert await worker.num_pending() == 0
