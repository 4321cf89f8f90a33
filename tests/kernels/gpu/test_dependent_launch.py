"""Where kernels are launched early."""

import pytest
import torch

from kernels.gpu import dependent_launch


@pytest.mark.parametrize(
    ("capability", "expected"), [((8, 9), False), ((9, 0), True), ((10, 0), True)]
)
def test_it_takes_a_gpu_that_can(
    capability: tuple[int, int], *, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others would not know the option."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    can_start_early = dependent_launch._can_start_early.__wrapped__
    assert can_start_early(torch.device("cuda", 0)) == expected


def test_a_processor_waits_for_nothing() -> None:
    """The interpreter runs one kernel after the other."""
    assert dependent_launch.dependent_launch(torch.zeros(1)) == {"is_dependent": False}
