"""From pinned memory to the GPU, without letting other threads run Python meanwhile.

A copy is begun in microseconds. torch gives up the interpreter for them, and whoever takes it then
keeps it for some tenths of a millisecond, in which the device waits for a round that is all but
launched (docs/decisions.md, "What a round waits for").
"""

import ctypes
import functools
from collections.abc import Callable

import torch
from torch import Tensor

NO_CONTEXT = 201  # this thread has done nothing on the GPU yet: its first copy is torch's


def upload(destination: Tensor, source: Tensor) -> None:
    """Begin to copy, in the order of the current stream.

    Args:
        destination: contiguous.
        source: the same shape and dtype, contiguous; pinned where the destination is on a GPU, and
            left alone until it is copied.

    Raises:
        RuntimeError: the driver refuses.
    """
    if not destination.is_cuda:
        destination.copy_(source)
        return
    stream = torch.cuda.current_stream().cuda_stream
    begin = _copy_to_device()
    status = begin(destination.data_ptr(), source.data_ptr(), source.nbytes, stream)
    if status == NO_CONTEXT:
        destination.copy_(source, non_blocking=True)
    elif status:
        raise RuntimeError(f"CUDA error {status}: a copy to the GPU was refused")


def is_over(event: torch.cuda.Event) -> bool:
    """Whether waiting for it would take no time; asking keeps the interpreter, waiting does not."""
    return bool(event.query())  # type: ignore[no-untyped-call]


@functools.cache
def _copy_to_device() -> Callable[[int, int, int, int], int]:
    driver = ctypes.PyDLL("libcuda.so.1")  # unlike CDLL it keeps the interpreter
    copy = driver.cuMemcpyHtoDAsync_v2
    copy.argtypes = (ctypes.c_uint64, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)
    copy.restype = ctypes.c_int
    return copy
