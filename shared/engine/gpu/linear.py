"""The library's linear layers: y = x W^T + b, by the faster of the two ways that torch has to it.

Without a bias torch asks cuBLAS, with one cuBLASLt. They choose their kernels by rules of their
own, and where a matrix has few outputs the second chooses better: 160 rows of 4,096 to 4,096 take
15.7 us instead of 19.5, 96 of 14,336 to 4,096 34.7 instead of 39.2 (H200, docs/decisions.md).
There a bias of zeros is added, for whose sake alone nothing changes; the order of summation is then
the other library's.
"""

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  # torch's own name for it

FEW_OUTPUTS = 8_192  # the most at which a bias may pay
FEW_ROWS = 112  # the most at which it does even if there are more inputs than outputs


def gains_by_bias(num_rows: int, num_out: int, num_in: int) -> bool:
    """Whether such a product is to be asked for with a bias."""
    return num_out <= FEW_OUTPUTS and (num_in <= num_out or num_rows <= FEW_ROWS)


class LibraryLinear:
    """Products as fast as the library can, whose order of summation is its own affair.

    Args:
        dtype: of all matrices.
        device: theirs.
    """

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self._no_bias = torch.zeros(FEW_OUTPUTS, dtype=dtype, device=device)

    def __call__(
        self, x: Tensor, weight: Tensor, bias: Tensor | None = None, *, out: Tensor | None = None
    ) -> Tensor:
        """Multiply any number of rows.

        Args:
            x: [T, K].
            weight: [N, K].
            bias: [N]; None with `out`.
            out: [T, N]; allocated if not given.
        """
        if out is not None:
            assert bias is None
            return torch.mm(x, weight.t(), out=out)
        num_out, num_in = weight.shape
        if bias is None and gains_by_bias(len(x), num_out, num_in):
            bias = self._no_bias[:num_out]
        return F.linear(x, weight, bias)
