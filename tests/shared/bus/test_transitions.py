"""The server enforces the table of states, row by row: what is in it and what is not."""

import pytest

from shared.bus.jobs import Claim, Delivery
from shared.protocol.jobs import TRANSITIONS, JobState, parse_entry
from shared.protocol.keys import TARGET_GROUP
from shared.protocol.records import Failed, Record
from tests.bus_worker import BusWorker, done, tokens

pytestmark = pytest.mark.server

EVENTS = ("claimed", "committed", "released", "done", "failed")
ROWS = [(state, event) for state in (None, *JobState) for event in EVENTS]
FAILED = Failed("internal_error", "it broke")


@pytest.mark.parametrize(("state", "event"), ROWS, ids=[f"{s} {e}" for s, e in ROWS])
async def test_row(worker: BusWorker, state: JobState | None, event: str) -> None:
    """An event in the table leads to its state; any other changes nothing."""
    claim = await _reach(worker, state)
    before = await worker.records("j")
    await _cause(worker, claim, event)
    info = await worker.log.info("j")
    assert info is not None
    assert info.state == TRANSITIONS.get((state, event), state)
    if (state, event) not in TRANSITIONS:
        assert await worker.records("j") == before


async def _reach(worker: BusWorker, state: JobState | None) -> Claim:
    """A job `j` in this state, its entry pending at the worker, and the claim of its caller."""
    await worker.submit("j")
    (delivery,) = await worker.fetch()
    if state is None:
        return Claim("j", delivery.stream, delivery.entry_id, 1, 1, False, 1, (0,))
    claim = await worker.claim(delivery)
    assert claim is not None
    if state is not JobState.RUNNING:
        await worker.append(claim, tokens(0, 1), done() if state is JobState.DONE else FAILED)
    await _deliver_again(worker, claim)
    return claim


async def _deliver_again(worker: BusWorker, claim: Claim) -> None:
    """Make the entry pending whatever became of it: XCLAIM FORCE needs no delivery."""
    consumer = worker.bus.worker_id
    await worker.bus.call(
        "XCLAIM", claim.stream, TARGET_GROUP, consumer, 0, claim.entry_id, "FORCE"
    )


async def _cause(worker: BusWorker, claim: Claim, event: str) -> None:
    if event == "claimed":
        (row,) = await worker.bus.call("XRANGE", claim.stream, claim.entry_id, claim.entry_id)
        fields = dict(zip(row[1][::2], row[1][1::2], strict=True))
        delivery = Delivery(claim.stream, claim.entry_id, fields)
        entry = parse_entry(delivery.entry_id, fields)
        await worker.jobs.claim(delivery, entry, seed=1, num_choices=1)
    elif event == "released":
        await worker.jobs.hand_back(claim)
    elif event == "failed" and (info := await worker.log.info("j")) and info.state is None:
        fields = {b"id": b"j", b"body": b"{}"}
        delivery = Delivery(claim.stream, claim.entry_id, fields)
        await worker.jobs.bury(delivery, reason="test", error=FAILED)
    else:
        first = tokens(claim.lengths[0], 7)
        records: dict[str, Record] = {"committed": first, "done": done(), "failed": FAILED}
        await worker.append(claim, records[event])
