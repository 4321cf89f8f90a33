"""What has been answered is there after kill -9 and a restart, thanks to the append-only file."""

import asyncio

import pytest

from shared.bus.jobs import Claim
from shared.bus.log import CommitStatus
from shared.protocol.jobs import JobEntry
from tests.bus_worker import BusWorker, done, tokens
from tests.server import Server
from tests.shared.bus.conftest import StartWorker

pytestmark = [pytest.mark.server, pytest.mark.slow]

NUM_JOBS = 4
NUM_ROUNDS = 120
KILL_AFTER = (25, 60, 90)  # rounds of the first job


async def test_every_acknowledged_append_survives_kill_9(
    start_worker: StartWorker, own_server: Server
) -> None:
    """Workers that commit while the server is killed three times end with dense, complete logs."""
    worker = await start_worker("target:a", url=own_server.url, deadline_s=60.0)
    for number in range(NUM_JOBS):
        await worker.submit(f"j{number}")
    claims = [await worker.take() for _ in range(NUM_JOBS)]
    progress: dict[str, int] = {}
    async with asyncio.TaskGroup() as tasks:
        for claim in claims:
            tasks.create_task(_write(worker, claim, progress))
        for limit in KILL_AFTER:
            while progress.get("j0", 0) < limit:
                await asyncio.sleep(0.001)
            acknowledged = dict(progress)
            await asyncio.to_thread(own_server.restart)
            for job_id, num_tokens in acknowledged.items():
                held = await worker.log.choices(job_id)
                assert held[0][:num_tokens] == tuple(range(num_tokens))
    for number in range(NUM_JOBS):
        records = await worker.records(f"j{number}")
        assert records == [*(tokens(n, n) for n in range(NUM_ROUNDS)), done()]


async def _write(worker: BusWorker, claim: Claim, progress: dict[str, int]) -> None:
    for offset in range(NUM_ROUNDS):
        reply = await worker.append(claim, tokens(offset, offset))
        assert reply.status is CommitStatus.OK
        progress[claim.job_id] = offset + 1
    assert (await worker.append(claim, done())).status is CommitStatus.OK


async def test_every_acknowledged_job_survives_kill_9(
    start_worker: StartWorker, own_server: Server
) -> None:
    """Jobs submitted while the server is killed are all there, each once."""
    worker = await start_worker("target:a", url=own_server.url, deadline_s=60.0)
    num_done = 0

    async def submit() -> None:
        nonlocal num_done
        for number in range(150):
            await worker.jobs.submit(JobEntry(job_id=f"j{number}", body=b"{}"))
            num_done += 1

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(submit())
        for limit in (30, 80):
            while num_done < limit:
                await asyncio.sleep(0.001)
            await asyncio.to_thread(own_server.restart)
    await worker.beat()
    fetched = [delivery.fields[b"id"].decode() for delivery in await worker.fetch(999)]
    assert fetched == [f"j{number}" for number in range(150)]
