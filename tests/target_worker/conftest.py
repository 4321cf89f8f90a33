"""Torch on one thread: more of them than cores wait for each other."""

import torch

torch.set_num_threads(1)
