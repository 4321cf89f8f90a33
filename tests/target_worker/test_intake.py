"""One entry's trouble stays its own: whatever it provokes, it ends, and the next one is served."""

import asyncio
import contextlib
import json
from pathlib import Path

import pytest

from shared.bus.connection import Bus
from shared.common.clock import SystemClock
from shared.protocol.jobs import JobEntry
from shared.protocol.records import Failed, Record
from target_worker.admitted import AdmittedJob
from target_worker.intake import Intake
from tests.bus_worker import BusWorker, until
from tests.target_worker import serving

pytestmark = pytest.mark.server


async def test_an_entry_that_provokes_a_bug_ends_and_is_not_tried_for_ever(
    bus: Bus, tmp_path: Path
) -> None:
    """An unexpected error: one terminal record, nothing left pending, and the next job comes in."""
    worker = await BusWorker.start(bus)
    taken: list[str] = []

    def submit(job: AdmittedJob) -> None:
        if job.claim.job_id == "bad":
            raise RuntimeError("a bug")
        taken.append(job.claim.job_id)

    intake = Intake(
        worker.jobs,
        worker.log,
        serving.served(serving.tiny_model(tmp_path)),
        room=lambda: 4,
        started=lambda *_: None,
        submit=submit,
        end=lambda *_: None,
        clock=SystemClock(),
    )
    for job_id in ("bad", "good"):
        await worker.jobs.submit(JobEntry(job_id, json.dumps(serving.body()).encode()))
    running = asyncio.create_task(intake.run())

    async def end_of_bad() -> list[Record]:
        return await worker.records("bad")

    async def others() -> list[str]:
        return taken

    (end,) = await until(end_of_bad)
    assert await until(others) == ["good"]
    assert isinstance(end, Failed)
    assert end.code == "internal_error"
    assert await worker.num_pending() == 1  # the good one, which has not ended
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running
