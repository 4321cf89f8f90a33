"""What every runner must do, whatever computes it: checks against transformers' own model."""

import random
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from shared.engine.spans import Runner, Span
from tests.checkpoints import MAX_LEN, expected_logits, random_tokens

BLOCK_SIZE = 16
Check = tuple[Runner, nn.Module, float]  # the model of the same checkpoint, and how far off it is


def assert_close(logits: Tensor, expected: Tensor, atol: float) -> None:
    """Fail unless equal up to rounding, wherever they are."""
    torch.testing.assert_close(logits.cpu(), expected, atol=atol, rtol=0)


def block_tables(num_tables: int, block_size: int = BLOCK_SIZE) -> list[list[int]]:
    """Disjoint block tables of a full context each, in no order."""
    ids = list(range(num_tables * -(-MAX_LEN // block_size)))
    random.Random(5).shuffle(ids)
    return [ids[table::num_tables] for table in range(num_tables)]


def no_progress(_event: str, _done: int, _total: int) -> None:
    """Nobody watches."""


def check_pieces(check: Check, sizes: Sequence[int], block_size: int = BLOCK_SIZE) -> None:
    """A full context in pieces gives the logits of one pass, to the last token."""
    runner, model, atol = check
    assert sum(sizes) == MAX_LEN
    (table,) = block_tables(1, block_size)
    token_ids = random_tokens(MAX_LEN)
    rows, start = [], 0
    for num_rows in sizes:
        tokens = token_ids[start : start + num_rows]
        rows.append(runner.run([Span(tokens, start, table, num_rows)]).clone())
        start += num_rows
    assert_close(torch.cat(rows), expected_logits(model, token_ids), atol)


def check_ragged(
    check: Check, shapes: Sequence[tuple[int, int, int]], block_size: int = BLOCK_SIZE
) -> None:
    """Sequences of (tokens before, rows, logits) share a pass and do not mix."""
    runner, model, atol = check
    prefixes, spans, expected = [], [], []
    tables = block_tables(len(shapes), block_size)
    for index, (start, num_rows, num_logits) in enumerate(shapes):
        token_ids = random_tokens(start + num_rows, seed=index)
        if start:
            prefixes.append(Span(token_ids[:start], 0, tables[index], 0))
        spans.append(Span(token_ids[start:], start, tables[index], num_logits))
        expected.append(expected_logits(model, token_ids)[len(token_ids) - num_logits :])
    assert runner.run(prefixes).shape == (0, len(expected[0][0]))
    assert_close(runner.run(spans), torch.cat(expected), atol)


def check_fork(check: Check) -> None:
    """A branch shares full blocks, copies the partial one, and disturbs nobody."""
    runner, model, atol = check
    trunk = random_tokens(30, seed=1)
    left, right = random_tokens(4, seed=2), random_tokens(4, seed=3)
    runner.run([Span(trunk, 0, [4, 2, 1], 0)])
    runner.copy_blocks([(2, 7)])
    runner.copy_blocks([])
    logits = runner.run([Span(left, 30, [4, 2, 1], 4), Span(right, 30, [4, 7, 3], 4)])
    expected = [expected_logits(model, trunk + branch)[30:] for branch in (left, right)]
    assert_close(logits, torch.cat(expected), atol)


def check_mixed(check: Check) -> None:
    """A prefill chunk that is not the last, a decode and verify rows, in one pass."""
    runner, model, atol = check
    first, second, third = block_tables(3)
    one, two, three = (random_tokens(60, seed=seed) for seed in range(3))
    chunk = runner.run([Span(one[:40], 0, first, 40)]).clone()
    assert_close(chunk, expected_logits(model, one[:40]), atol)
    runner.run([Span(two[:20], 0, second, 0), Span(three[:33], 0, third, 0)])
    mixed = runner.run(
        [
            Span(one[40:50], 40, first, 0),
            Span(two[20:21], 20, second, 1),
            Span(three[33:38], 33, third, 5),
        ]
    ).clone()
    expected = [expected_logits(model, two[:21])[20:], expected_logits(model, three[:38])[33:]]
    assert_close(mixed, torch.cat(expected), atol)
    rest = runner.run([Span(one[50:], 50, first, 1)])
    assert_close(rest, expected_logits(model, one)[-1:], atol)
