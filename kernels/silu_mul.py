"""The gate of the feed-forward layer: y = silu(gate) x up, with silu(z) = z / (1 + exp(-z)).

Source: SwiGLU, Shazeer 2020, arXiv:2002.05202.
"""

from torch import Tensor
from torch.nn import functional as F  # noqa: N812  # torch's own name for it


def silu_mul_reference(gate_up: Tensor) -> Tensor:
    """[T, 2 x I] float32, gate first, to [T, I]."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate).mul_(up)
