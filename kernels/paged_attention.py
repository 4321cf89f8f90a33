"""Attention of ragged spans over a paged cache: prefill, decode and verify rows in one pass.

A row at position p sees the cached tokens 0..p of its own sequence (with a window w, the last w of
them): softmax(q K^T / sqrt(D)) V. Source: Vaswani et al. 2017, arXiv:1706.03762; grouped queries,
Ainslie et al. 2023, arXiv:2305.13245; blocks, Kwon et al. 2023, arXiv:2309.06180.

On the CPU a pass is cut into groups of similar spans, padded and attended to in one call each
(`kernels.attention_plan`). Keys and values are read where they are if a lone sequence's blocks
follow one another, else gathered by whole blocks: 12 us for one sequence of 400 tokens.
"""

from torch import Tensor
from torch.nn import functional as F  # noqa: N812  # torch's own name for it

from kernels.attention_plan import AttentionGroup
from kernels.head_layout import LayerCache


def paged_attention_reference(
    qkv: Tensor, cache: LayerCache, plan: list[AttentionGroup], window: int | None
) -> Tensor:
    """Attend every row of a pass to its sequence's cached tokens.

    Args:
        qkv: [T, (queries + keys + values) x D] float32, contiguous, in the order of HeadLayout.
        cache: the layer's, with these keys and values written.
        plan: from `plan_attention`, for this pass.
        window: the layer's.

    Returns:
        [T, num_heads x D] float32.
    """
    if len(plan) == 1 and isinstance(plan[0].rows, slice):
        return _attend(qkv, cache, plan[0], window)
    layout = plan[0].layout
    out = qkv.new_empty(len(qkv), layout.num_heads * layout.head_dim)
    for group in plan:
        if isinstance(group.rows, slice):
            out[group.rows] = _attend(qkv[group.rows], cache, group, window)
        else:
            own = qkv.index_select(0, group.rows)
            out.index_copy_(0, group.rows, _attend(own, cache, group, window))
    return out


def _attend(qkv: Tensor, cache: LayerCache, group: AttentionGroup, window: int | None) -> Tensor:
    """The fused rows [B x R, ...] of one group to [B x R, num_heads x D]."""
    keys, values = cache.keys, cache.values
    if group.block_ids is not None:
        keys = cache.key_blocks.index_select(0, group.block_ids)
        values = cache.value_blocks.index_select(0, group.block_ids)
    out = F.scaled_dot_product_attention(
        _packed_queries(qkv, group),
        keys.as_strided(group.shape, group.strides, group.offset),
        values.as_strided(group.shape, group.strides, group.offset),
        attn_mask=group.masks[window],
    ).transpose(1, 2)
    num_real = group.num_rows * group.layout.group_size
    if num_real < group.num_packed:
        out = out.narrow(1, 0, num_real)
    return out.reshape(len(qkv), -1)


def _packed_queries(qkv: Tensor, group: AttentionGroup) -> Tensor:
    """[B, num_kv_heads, P, D]."""
    layout = group.layout
    num_kv_heads, head_dim = layout.num_kv_heads, layout.head_dim
    if group.num_rows == 1:
        # Without a copy. Rows that are missing to P are read from the keys behind the queries.
        return qkv.as_strided(
            (group.num_sequences, num_kv_heads, group.num_packed, head_dim),
            (layout.num_all * head_dim, head_dim, num_kv_heads * head_dim, 1),
            qkv.storage_offset(),
        )
    queries = qkv.narrow(1, 0, layout.num_heads * head_dim)
    packed = queries.reshape(group.num_sequences, group.num_packed, num_kv_heads, head_dim)
    return packed.transpose(1, 2)
