"""What a GPU says when its memory is used up, as an error that an operator can act on."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from shared.common.errors import ConfigError

# Of the caching allocator, of the driver (graphs, kernels) and of cuBLAS.
_SIGNS = ("out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


@contextmanager
def explained(flag: str) -> Iterator[None]:
    """Around loading: another process may have taken what was free when it began.

    Args:
        flag: what an operator lowers.

    Raises:
        ConfigError: the memory did not suffice.
    """
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and not _is_about_memory(error):
            raise
        raise ConfigError(
            f"{flag} asks for more of the GPU's memory than other processes leave: {_first(error)}"
        ) from error


def _is_about_memory(error: RuntimeError) -> bool:
    return any(sign in str(error) for sign in _SIGNS)


def _first(error: RuntimeError) -> str:
    """Its first line; the others are advice for programmers."""
    return str(error).partition("\n")[0]
