"""What is pinned on the host comes to the device as it is, in the order of the stream."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from shared.engine.gpu.upload import is_over, upload


def numbers_on(device: str) -> tuple[Tensor, Tensor]:
    """3,000 numbers on the host, and as many others on the device."""
    source = torch.arange(3_000, dtype=torch.int32, pin_memory=device == "cuda")
    return source, torch.full((3_000,), -1, dtype=torch.int32, device=device)


def check_upload(source: Tensor, destination: Tensor) -> None:
    """All of a part arrives, and nothing beside it; behind what was begun before."""
    destination.fill_(-1)
    upload(destination[100:2_000], source[100:2_000])
    upload(destination[:0], source[:0])
    expected = torch.full_like(source, -1)
    expected[100:2_000] = source[100:2_000]
    assert torch.equal(destination.cpu(), expected)


def test_numbers_arrive(device: str) -> None:
    """Again and again."""
    numbers = numbers_on(device)
    for _ in range(3):
        check_upload(*numbers)


def test_a_thread_may_begin_with_an_upload(device: str) -> None:
    """Before it has done anything else on the device; as a worker's thread does."""
    source, destination = numbers_on(device)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(upload, destination, source).result()
        assert torch.equal(destination.cpu(), source)
        pool.submit(check_upload, source, destination).result()


@pytest.mark.gpu
def test_an_event_tells_when_what_was_begun_is_over() -> None:
    """And does not wait for it."""
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    numbers = torch.ones(1 << 26, device="cuda")
    for _ in range(20):
        numbers.mul_(2.0)
    event.record()
    assert not is_over(event)
    event.synchronize()
    assert is_over(event)
