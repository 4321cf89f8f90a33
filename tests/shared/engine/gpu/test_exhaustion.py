"""Memory that others have taken, in the words of an operator."""

import pytest
import torch

from shared.common.errors import ConfigError
from shared.engine.gpu.exhaustion import explained
from shared.engine.gpu.memory import GIB
from tests.shared.engine.gpu.test_memory import LLAMA_3_8B, make_plan

FLAG = "--num-blocks"


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nSee the manual"),
        RuntimeError("Triton Error [CUDA]: out of memory"),
        RuntimeError("CUDA error: out of memory\nCompile with TORCH_USE_CUDA_DSA"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"),
    ],
)
def test_what_a_gpu_says_of_its_memory_names_the_flag(error: RuntimeError) -> None:
    """In one line, with its own first line."""
    with pytest.raises(ConfigError) as caught, explained(FLAG):
        raise error
    own = str(error).partition("\n")[0]
    assert str(caught.value) == (
        f"--num-blocks asks for more of the GPU's memory than other processes leave: {own}"
    )


@pytest.mark.parametrize("error", [RuntimeError("CUDA error: misaligned"), ValueError("no")])
def test_other_errors_pass(error: Exception) -> None:
    """As they are."""
    with pytest.raises(type(error)) as caught, explained(FLAG):
        raise error
    assert caught.value is error


def test_a_gpu_that_others_use_is_refused_before_anything_is_loaded() -> None:
    """By what is free of it now, whatever share was meant; with the plan."""
    own = make_plan(LLAMA_3_8B)
    needed = own.needed_bytes(own.num_blocks)
    assert needed <= own.usable_bytes
    own.check_free(own.num_blocks, needed, FLAG)
    with pytest.raises(ConfigError, match=r"--num-blocks asks for 1\d\d\.\d\d GiB .*, 90\.00 GiB"):
        own.check_free(own.num_blocks, 90 * GIB, FLAG)
