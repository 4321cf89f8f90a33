"""Kernels that are set up while the one before them ends (programmatic dependent launch).

Between two kernels of a stream a GPU rests for a microsecond or two, five to nine times a layer:
longer than many of them compute. From Hopper on a kernel may be launched early. Then each of its
programs

    waits, before it reads what another kernel wrote and before it writes anything at all: all that
        was launched before is done then, and visible, as if the launch had been an ordinary one
    lets the next one start, if that was launched early too: once all programs have said so, or have
        ended, programs of the next take the places that become free, and wait

so no result changes. When to let it start decides what it gives: a program that waits has a place
and no work. Kernels that read for long say so when they have read, short ones at once.
Source: CUDA Programming Guide, "Programmatic Dependent Launch and Synchronization".
"""

import functools
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

HOPPER = (9, 0)


@triton.jit  # type: ignore[untyped-decorator]
def wait_for_launched(is_dependent: tl.constexpr) -> None:
    """Until everything launched before is done; every program of a kernel must come here."""
    if is_dependent:
        tl.extra.cuda.gdc_wait()


@triton.jit  # type: ignore[untyped-decorator]
def let_next_start(is_dependent: tl.constexpr) -> None:
    """The next kernel may be set up once every program has come here, or has ended."""
    if is_dependent:
        tl.extra.cuda.gdc_launch_dependents()


def dependent_launch(x: Tensor) -> dict[str, Any]:
    """Options of a launch, where such a kernel's argument `is_dependent` is one.

    Args:
        x: on the device of the launch.
    """
    return _OPTIONS[x.is_cuda and _can_start_early(x.device)]


_OPTIONS = {
    False: {"is_dependent": False},
    True: {"is_dependent": True, "launch_pdl": True},
}


@functools.cache
def _can_start_early(device: torch.device) -> bool:
    return torch.cuda.get_device_capability(device) >= HOPPER
