"""Kernels that are launched while the one before them still runs, and wait for it on the device.

What a launch costs between two short kernels is about as long as they are. With programmatic
dependent launch a kernel's programs are set up meanwhile; `gdc_wait` holds them until everything
before is done and visible, so no result changes. A kernel that is launched so begins with

    if is_dependent:
        tl.extra.cuda.gdc_launch_dependents()
        ...  # what needs nothing that a kernel before has written
        tl.extra.cuda.gdc_wait()

Needs compute capability 9.0. Source: CUDA programming guide, "Programmatic dependent launch".
"""

import functools

import torch
from torch import Tensor

_MIN_CAPABILITY = (9, 0)


def is_dependent(tensor: Tensor) -> bool:
    """Whether kernels on this tensor's device can be launched so."""
    return tensor.is_cuda and _is_capable(tensor.device)


def launch_options(tensor: Tensor) -> dict[str, bool]:
    """What such a kernel is launched with."""
    return {"launch_pdl": True} if is_dependent(tensor) else {}


@functools.cache
def _is_capable(device: torch.device) -> bool:
    return torch.cuda.get_device_capability(device) >= _MIN_CAPABILITY
