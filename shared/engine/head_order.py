"""From a checkpoint's order of heads and rotary pairs to the order of `kernels`."""

from dataclasses import dataclass

from torch import Tensor

from kernels.head_layout import HeadLayout


@dataclass(frozen=True, slots=True)
class HeadOrder:
    """Permutes the sides of weights that face the heads, in any dtype and on any device.

    Query head k x G + g becomes g x num_kv_heads + k, so that the queries of one key head are
    further rows without a copy. Within a rotated head, number i and number i + D / 2 become
    neighbours. Scores do not change: queries and keys are permuted alike, and so is what reads the
    heads' output.
    """

    layout: HeadLayout

    def queries(self, tensor: Tensor) -> Tensor:
        """[heads x D, ...]."""
        layout = self.layout
        split = (layout.num_kv_heads, layout.group_size, 2, layout.head_dim // 2)
        heads = tensor.view(*split, *tensor.shape[1:]).transpose(0, 1).transpose(2, 3)
        return heads.reshape(tensor.shape)

    def keys(self, tensor: Tensor) -> Tensor:
        """[key heads x D, ...], or one head's [D]."""
        split = (-1, 2, self.layout.head_dim // 2)
        return tensor.view(*split, *tensor.shape[1:]).transpose(1, 2).reshape(tensor.shape)

    def output(self, tensor: Tensor) -> Tensor:
        """[hidden, heads x D]."""
        layout = self.layout
        split = (-1, layout.num_kv_heads, layout.group_size, layout.head_dim)
        return tensor.view(split).transpose(1, 2).reshape(tensor.shape)
