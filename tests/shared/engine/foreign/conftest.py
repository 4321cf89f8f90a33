import os

import pytest


@pytest.fixture(scope="session")
def device() -> str:
    """Where kernels run: on the GPU in `make test-gpu`, else in Triton's interpreter on the CPU."""
    return "cpu" if os.environ["TRITON_INTERPRET"] == "1" else "cuda"
