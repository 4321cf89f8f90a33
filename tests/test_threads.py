"""The setting in conftest.py that tests of models count on."""

import torch


def test_torch_runs_on_one_thread() -> None:
    """Set before anything imports torch, or it would not be heard."""
    assert torch.get_num_threads() == 1
