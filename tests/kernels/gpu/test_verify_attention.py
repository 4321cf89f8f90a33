"""Attention over the paged cache against the formula, and the same bits in any company."""

import random
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from kernels.gpu.attention_work import CHUNK_LEN, AttentionBatch
from kernels.gpu.verify_attention import CONFIGS, FP8_CONFIGS
from tests.kernels.gpu.attention_rounds import (
    Lens,
    Round,
    assert_close,
    attend,
    attend_into,
    attend_reference,
    make_batch,
    make_round,
    make_work,
    poisoned,
)
from tests.kernels.gpu.compiled import compile_for_sm90

MIX: Lens = [(63, 63), (1, 300), (5, 63), (1, 1), (5, 601)]
SHAPES = {
    "one-token": [(1, 1)],
    "decode": [(1, 1009)],
    "verify": [(5, 1009)],
    "across-a-chunk": [(5, 258), (3, 256), (2, 257)],
    "mix": MIX,
}


@pytest.mark.parametrize("lens", SHAPES.values(), ids=SHAPES.keys())
def test_rows_are_attended_to_by_the_formula(lens: Lens, device: str) -> None:
    """Prefill, decode and verify rows, of one chunk and of several."""
    attention = make_round(lens, device=device)
    assert_close(attend(attention), attend_reference(attention))


@pytest.mark.parametrize("block_size", [16, 64, 256])
@pytest.mark.parametrize("group_size", [1, 4, 7])
def test_any_block_and_group(group_size: int, block_size: int, device: str) -> None:
    """Blocks smaller and larger than a tile; groups that fill its rows and that do not."""
    attention = make_round(
        [(5, 280), (1, 63)],
        device=device,
        group_size=group_size,
        num_kv_heads=2,
        block_size=block_size,
    )
    assert_close(attend(attention), attend_reference(attention))


@pytest.mark.parametrize(("block_m", "head_dim"), [*CONFIGS, (16, 96), (128, 96)])
def test_any_head_and_tile(block_m: int, head_dim: int, device: str) -> None:
    """Every pinned configuration, and a head that is no power of 2."""
    attention = make_round([(9, 100)], device=device, head_dim=head_dim)
    assert_close(attend(attention, block_m=block_m), attend_reference(attention))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_any_dtype(dtype: torch.dtype, device: str) -> None:
    """Queries, keys and values of 16 or 32 bits, added up in float32."""
    attention = make_round([(5, 300), (1, 63)], device=device, dtype=dtype)
    assert_close(attend(attention), attend_reference(attention))


@pytest.mark.parametrize("window", [1, 17, 300, 5000])
def test_a_window(window: int, device: str) -> None:
    """A row sees so many tokens, itself included: within a tile, across chunks, and all."""
    attention = make_round([(9, 600), (1, 300), (7, 7)], device=device)
    assert_close(attend(attention, window=window), attend_reference(attention, window=window))


def test_a_soft_cap(device: str) -> None:
    """Logits far above the cap and far below minus the cap are bounded, not infinite."""
    attention = make_round([(5, 300)], device=device)
    attention.qkv.mul_(100)
    assert_close(attend(attention, soft_cap=30.0), attend_reference(attention, soft_cap=30.0))


def test_a_shared_prefix(device: str) -> None:
    """Two sequences read the same blocks, and each its own tail."""
    prefix = list(range(17))
    tables = [[*prefix, 20, 22], [*prefix, 21], [*prefix[:3]]]
    attention = make_round([(5, 300), (2, 284), (1, 48)], device=device, tables=tables)
    assert_close(attend(attention), attend_reference(attention))


CUT, WHOLE = 1_000_000, 1  # processors: tiles are cut where there are many, whole for one


@pytest.mark.parametrize("num_processors", [CUT, WHOLE], ids=["cut", "whole"])
@pytest.mark.parametrize("window", [None, 70])
def test_several_segments(num_processors: int, window: int | None, device: str) -> None:
    """Three segments of 8 chunks, of which a window leaves the first ones empty."""
    attention = make_round([(5, 1030), (1, 65)], device=device, block_size=64)
    got = attend(attention, chunk_len=64, window=window, num_processors=num_processors)
    assert_close(got, attend_reference(attention, window=window))


@pytest.mark.parametrize("window", [None, 70])
@pytest.mark.parametrize("block_m", [16, 32])
def test_parts_may_be_merged_apart(block_m: int, window: int | None, device: str) -> None:
    """More chunks than are merged at once, one chunk alone, and groups that fill no tile."""
    lens = [(5, 2200), (1, 64), (9, 300), (1, 1)]
    attention = make_round(lens, device=device, group_size=7, num_kv_heads=2, block_size=64)
    padded = padded_round(attention, num_rows=19, num_sequences=6)
    got = attend(padded, block_m=block_m, chunk_len=64, window=window, merges_apart=True)
    assert_close(got[:16], attend_reference(attention, window=window))
    assert got[16:].isnan().all()


def test_merged_apart_company_changes_no_bit(device: str) -> None:
    """A sequence alone, and fewer rows of it, equal the same in a mix."""
    attention = make_round([(5, 601), (1, 300), (21, 40)], device=device, head_dim=96)
    together = attend(attention, chunk_len=64, merges_apart=True)
    for sequence, num_rows, place in [(0, 5, 0), (0, 2, 0), (1, 1, 5), (2, 21, 6)]:
        alone = attend(sub_round(attention, sequence, num_rows), chunk_len=64, merges_apart=True)
        assert torch.equal(together[place : place + num_rows], alone)


def random_tree(num_rows: int, seed: int) -> list[list[int]]:
    """Of every row the path from the root to it, the root first."""
    rng = random.Random(seed)
    paths = [[0]]
    for row in range(1, num_rows):
        paths.append([*paths[rng.randrange(row)], row])
    return paths


def with_tree(attention: Round, paths: list[list[int]], base: int) -> tuple[Round, Tensor]:
    """The round with its first rows as a tree behind `base` tokens, and the bits of all rows."""
    device = attention.qkv.device
    bits = [sum(1 << row for row in path) for path in paths]
    bits += [(2 << row) - 1 for row in range(len(attention.qkv) - len(paths))]
    positions = attention.batch.positions.clone()
    depths = torch.tensor([len(path) - 1 for path in paths], device=device)
    positions[: len(paths)] = base + depths.to(positions)
    signed = [word - (1 << 64) if word >> 63 else word for word in bits]
    batch = replace(attention.batch, positions=positions)
    return replace(attention, batch=batch), torch.tensor(signed, dtype=torch.int64, device=device)


@pytest.mark.parametrize("window", [None, 20])
@pytest.mark.parametrize(("num_rows", "block_m"), [(9, 16), (64, 32)])
def test_a_tree_is_its_paths(num_rows: int, block_m: int, window: int | None, device: str) -> None:
    """Each row of a tree sees what it would see as the last row of its own path alone."""
    base, lens = 250, [(num_rows, 250 + num_rows), (3, 40)]
    chain = make_round(lens, device=device, block_size=64)
    paths = random_tree(num_rows, seed=num_rows)
    attention, bits = with_tree(chain, paths, base)
    got = attend(attention, block_m=block_m, tree_bits=bits, window=window)
    assert_close(got, attend_reference(attention, tree_bits=bits, window=window))
    for row in (0, num_rows // 2, num_rows - 1):
        alone = path_alone(chain, paths[row], base)
        assert_close(got[row], attend_reference(alone, window=window)[-1])


def path_alone(attention: Round, path: list[int], base: int) -> Round:
    """One path of the tree in the first sequence, as a sequence in a cache without branches."""
    block_size = attention.keys.shape[2]
    table = attention.batch.block_tables[0].long()
    tokens = torch.tensor([*range(base), *(base + row for row in path)])
    count = -(-len(tokens) // block_size)
    caches = []
    for part in (attention.keys, attention.values):
        own = part[table[tokens // block_size], :, tokens % block_size]  # [C, heads, D]
        padded = own.new_zeros(count * block_size, *own.shape[1:])
        padded[: len(own)] = own
        caches.append(padded.view(count, block_size, *own.shape[1:]).transpose(1, 2).contiguous())
    lens = [(len(path), len(tokens))]
    batch = make_batch(lens, [list(range(count))], str(part.device))
    return replace(attention, lens=lens, qkv=attention.qkv[path], keys=caches[0],
                   values=caches[1], batch=batch)  # fmt: skip


def test_a_prefill_among_trees_is_a_chain(device: str) -> None:
    """More rows than a word has bits see what came before them, whatever their bits say."""
    attention = make_round([(70, 90), (2, 5)], device=device)
    bits = torch.ones(72, dtype=torch.int64, device=device)
    bits[71] = 0b11
    assert_close(attend(attention, tree_bits=bits), attend_reference(attention))


def padded_round(attention: Round, num_rows: int, num_sequences: int) -> Round:
    """The same with rows and sequences of nobody behind it, their tables full of nonsense."""
    batch = attention.batch
    return replace(
        attention,
        qkv=extended(attention.qkv, num_rows, float("nan")),
        batch=AttentionBatch(
            extended(batch.query_starts, num_sequences, len(attention.qkv)),
            extended(batch.context_lens, num_sequences, 0),
            extended(batch.block_tables, num_sequences, 1 << 30),
            extended(batch.positions, num_rows, 0),
        ),
    )


def extended(tensor: Tensor, count: int, value: float) -> Tensor:
    """The tensor with so many more rows of one value."""
    return torch.cat([tensor, tensor.new_full((count, *tensor.shape[1:]), value)])


def test_padding_is_harmless(device: str) -> None:
    """Rows of nobody stay as they were, and the others have the same bits."""
    attention = make_round([(5, 300), (1, 63)], device=device)
    padded = attend(padded_round(attention, num_rows=9, num_sequences=3))
    assert torch.equal(padded[:6], attend(attention))
    assert padded[6:].isnan().all()


def test_a_round_of_nobody(device: str) -> None:
    """Nothing but padding writes nothing."""
    attention = make_round([(0, 0)], device=device)
    padded = padded_round(attention, num_rows=2, num_sequences=1)
    assert torch.equal(attend(padded).isnan(), poisoned(padded).isnan())


def sub_round(attention: Round, sequence: int, num_rows: int, first: int = 0) -> Round:
    """Some consecutive rows of one sequence, alone, as if those after them had not been drafted."""
    starts, context = attention.batch.query_starts.tolist(), attention.lens[sequence][1]
    begin = starts[sequence] + first
    seen = context - (starts[sequence + 1] - begin) + num_rows
    table = attention.batch.block_tables[sequence].tolist()
    lens = [(num_rows, seen)]
    return replace(
        attention,
        lens=lens,
        qkv=attention.qkv[begin : begin + num_rows],
        batch=make_batch(lens, [table], str(attention.qkv.device)),
    )


@pytest.mark.parametrize("num_programs", [1, 3, 100])
def test_company_and_programs_change_no_bit(num_programs: int, device: str) -> None:
    """A sequence alone equals the same in a mix, and by any number of programs."""
    attention = make_round([(21, 40), (5, 601), (1, 300)], device=device)
    together = attend(attention, num_programs=num_programs)
    for sequence, (first, num_rows) in enumerate([(0, 21), (21, 5), (26, 1)]):
        alone = attend(sub_round(attention, sequence, num_rows))
        assert torch.equal(together[first : first + num_rows], alone)


@pytest.mark.parametrize("window", [None, 300])
def test_cutting_changes_no_bit(window: int | None, device: str) -> None:
    """A tile whole, or in chunks that several programs compute and one merges, is the same."""
    attention = make_round([(3, 580), (1, 130)], device=device, group_size=7)
    first, *others = (
        attend(attention, chunk_len=64, window=window, num_processors=num_processors)
        for num_processors in (WHOLE, 6, CUT)
    )
    assert all(torch.equal(first, other) for other in others)


@pytest.mark.parametrize("window", [None, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_verified_row_equals_the_row_decoded(
    dtype: torch.dtype, window: int | None, device: str
) -> None:
    """For one block_m, drafts before and after a row change no bit of it, even across a chunk."""
    attention = make_round([(8, 260), (7, 515)], device=device, group_size=7, dtype=dtype)
    together = attend(attention, window=window)
    for sequence, first, place in [(0, 3, 3), (0, 4, 4), (0, 7, 7), (1, 0, 8), (1, 6, 14)]:
        alone = attend(sub_round(attention, sequence, 1, first), window=window)
        assert torch.equal(together[place], alone[0])


@pytest.mark.gpu
def test_a_captured_round_is_replayed_with_other_contents(device: str) -> None:
    """Listing and attention in one graph follow what the buffers hold when it is replayed."""
    first = make_round([(5, 700), (1, 1), (2, 40)], device=device, head_dim=128)
    second = make_round([(1, 300), (2, 601), (5, 63)], device=device, head_dim=128, seed=1)
    lens = [(5, 1024)] * 3
    tables = torch.zeros(3, 64, dtype=torch.int32, device=device)
    batch = replace(first.batch, block_tables=tables)
    cache = torch.empty(2, 128, *first.keys.shape[1:], dtype=first.keys.dtype, device=device)
    captured = replace(first, qkv=first.qkv.clone(), keys=cache[0], values=cache[1], batch=batch)
    work, out = make_work(captured, lens), poisoned(captured)
    load(captured, first)
    attend_into(captured, work, out)  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        attend_into(captured, work, out)
    for contents in (second, first):
        load(captured, contents)
        out.fill_(float("nan"))
        graph.replay()
        # Rows of nobody stay poisoned in both.
        assert torch.equal(out.nan_to_num(), attend(contents).nan_to_num())


def load(captured: Round, contents: Round) -> None:
    """Copy the contents of a round into the buffers of another of as many rows."""
    captured.qkv.copy_(contents.qkv)
    captured.keys[: len(contents.keys)] = contents.keys
    captured.values[: len(contents.values)] = contents.values
    width = contents.batch.block_tables.shape[1]
    captured.batch.block_tables[:, :width] = contents.batch.block_tables
    captured.batch.query_starts.copy_(contents.batch.query_starts)
    captured.batch.context_lens.copy_(contents.batch.context_lens)
    captured.batch.positions.copy_(contents.batch.positions)


@pytest.mark.gpu
def test_a_cache_of_more_than_2_31_elements(device: str) -> None:
    """Blocks at both ends of it are read where they are."""
    num_blocks, block_size = (1 << 31) // (8 * 256 * 128) + 2, 256
    small = make_round(
        [(5, 300)], device=device, num_kv_heads=8, head_dim=128, block_size=block_size,
        dtype=torch.bfloat16, tables=[[0, 1]],
    )  # fmt: skip
    caches = []
    for part in (small.keys, small.values):
        cache = part.new_full((num_blocks, *part.shape[1:]), float("nan"))
        cache[0], cache[-1] = part[0], part[1]
        caches.append(cache)
    batch = make_batch(small.lens, [[0, num_blocks - 1]], device)
    large = replace(small, keys=caches[0], values=caches[1], batch=batch)
    assert torch.equal(attend(large), attend(small))


POINTERS = {
    "qkv_ptr": "*bf16", "keys_ptr": "*bf16", "values_ptr": "*bf16", "out_ptr": "*bf16",
    "block_tables_ptr": "*i32", "max_blocks": "i32", "positions_ptr": "*i32",
    "tree_bits_ptr": "*i64", "items_ptr": "*i32", "num_items_ptr": "*i32",
    "max_items": "i32", "counters_ptr": "*i32", "outputs_ptr": "*fp32", "maxima_ptr": "*fp32",
    "sums_ptr": "*fp32", "score_scale": "fp32",
}  # fmt: skip
SM_SHARED_BYTES = 227 * 1024
SM_REGISTERS = 65_536


@pytest.mark.parametrize("cache", ["*bf16", "*fp8e4nv"])
@pytest.mark.parametrize(
    ("block_m", "head_dim", "block_size", "merges_apart"),
    [
        *((block_m, 128, 16, False) for block_m in (16, 32, 128)),
        *((block_m, 128, 64, apart) for block_m in (16, 32) for apart in (False, True)),
        *((block_m, head_dim, 16, False) for block_m in (16, 32) for head_dim in (64, 256)),
        (128, 64, 16, False),
        (128, 256, 16, True),
    ],
)
def test_hopper_holds_it_without_spills(
    *, block_m: int, head_dim: int, block_size: int, merges_apart: bool, cache: str
) -> None:
    """With a tree mask, and as many programs on an SM as the table says."""
    config = (CONFIGS if cache == "*bf16" else FP8_CONFIGS)[block_m, head_dim]
    constexprs = {
        "soft_cap": 0.0, "window": 0, "num_kv_heads": 8, "group_size": 4, "head_dim": head_dim,
        "block_size": block_size, "block_m": block_m, "block_n": config.block_n,
        "chunk_len": 64 if merges_apart else CHUNK_LEN, "merges_apart": merges_apart,
        "is_interpreted": False, "is_dependent": True,
    }  # fmt: skip
    resources = compile_for_sm90(
        "kernels.gpu.verify_attention",
        "_verify_attention_kernel",
        POINTERS
        | {"keys_ptr": cache, "values_ptr": cache}
        | dict.fromkeys(constexprs, "constexpr"),
        constexprs,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        options={"enable_fp_fusion": False},
    )
    assert resources.spill_bytes == 0
    assert resources.waits_first
    assert resources.shared_bytes * config.programs_per_sm <= SM_SHARED_BYTES
    num_threads = 32 * config.num_warps * config.programs_per_sm
    assert resources.num_regs * num_threads <= SM_REGISTERS
