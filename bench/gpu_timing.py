"""Times on a GPU: launches by events, calls by the clock, and the bandwidth that sets the floor."""

import statistics
import time
from collections.abc import Callable

import torch

REPEATS = 30
HEAD_START_CYCLES = 600_000  # some 0.3 ms: longer than a launch, or staging a round, takes the host


def device_ms(launch: Callable[[], object], repeats: int = REPEATS) -> list[float]:
    """Milliseconds on the device, one entry a launch, sorted; what the host takes is left out."""
    for _ in range(3):
        launch()
    times = []
    for _ in range(repeats):
        torch.cuda._sleep(HEAD_START_CYCLES)  # type: ignore[no-untyped-call]  # noqa: SLF001
        start: torch.cuda.Event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        end: torch.cuda.Event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        start.record()
        launch()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end))
    return sorted(times)


def host_ms(run: Callable[[], object], repeats: int = REPEATS) -> list[float]:
    """Milliseconds of wall clock until the call is back, sorted."""
    run()
    times = []
    for _ in range(repeats):
        torch.cuda.synchronize()
        started = time.perf_counter()
        run()
        times.append(1e3 * (time.perf_counter() - started))
    return sorted(times)


def paired_ms(
    launch: Callable[[], object], run: Callable[[], object], repeats: int = REPEATS
) -> tuple[list[float], list[float]]:
    """`device_ms` of one and `host_ms` of the other by turns, so that both see the same clocks."""
    device, host = [], []
    for _ in range(repeats):
        device += device_ms(launch, 1)
        host += host_ms(run, 1)
    return sorted(device), sorted(host)


def copy_bandwidth(device: torch.device) -> float:
    """Bytes a second, read and written, of a large copy within the device."""
    source = torch.empty(2 << 30, dtype=torch.int8, device=device).random_()
    target = torch.empty_like(source)
    milliseconds = device_ms(lambda: target.copy_(source), 10)
    return 2 * source.nbytes / (1e-3 * statistics.median(milliseconds))


def graph_of(run: Callable[[], object]) -> torch.cuda.CUDAGraph:
    """What `run` launches, captured after one run that compiles and loads it."""
    side: torch.cuda.Stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph
