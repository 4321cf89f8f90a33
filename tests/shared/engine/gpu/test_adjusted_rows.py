import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.engine.adjustments import Adjustments
from shared.engine.gpu import adjusted_rows
from shared.engine.gpu.adjusted_rows import AdjustedRows, Changes, Piece, changes_of_rows, pieces_of
from shared.engine.sampling import VerifyRequest
from shared.protocol.sampling import SamplingParams
from tests.reference_sampler import all_logits, all_rows, random_logits, tensor


@pytest.mark.parametrize("vocab_size", [1, 63, 1009])
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_every_row_is_changed_as_if_its_drafts_were_confirmed(
    vocab_size: int, device: str, data: st.DataObject
) -> None:
    """To the last bit, in float64; rows of others stay out of it, and the logits as they are."""
    row = data.draw(all_rows(vocab_size))
    drafts = data.draw(st.lists(st.integers(0, vocab_size - 1), max_size=3))
    request = VerifyRequest(row.params, row.token_ids, row.prompt_len, drafts)
    num_rows = len(drafts) + 1
    logits = tensor(*(data.draw(all_logits(vocab_size)) for _ in range(num_rows + 1)))
    indices = list(range(1, num_rows + 1))
    changes = changes_of_rows(request, np.array(drafts, np.int64), vocab_size)
    rows = AdjustedRows(num_rows, vocab_size, torch.device(device))
    before = logits.to(device)
    adjusted = rows.apply(before, Piece(indices, changes))
    assert torch.equal(before.cpu(), logits)
    definition = Adjustments(row.params, row.token_ids, row.prompt_len, vocab_size)
    for index, ours in enumerate(adjusted.cpu().numpy()):
        np.testing.assert_array_equal(ours, definition.apply(logits[index + 1].numpy()))
        if index < len(drafts):
            definition.accept(drafts[index])


def test_ids_that_are_none_change_nothing(device: str) -> None:
    """In the history, among the drafts, in the bias and among the stop ids."""
    params = SamplingParams(
        seed=1,
        repetition_penalty=1.5,
        frequency_penalty=0.5,
        logit_bias=((-1, 5.0), (63, 5.0), (2**70, 5.0)),
        min_tokens=9,
        stop_token_ids=(-3, 900, 2**70),
    )
    request = VerifyRequest(params, [3, 63, 2**62], 1, [-1])
    logits = tensor(random_logits(63, 1), random_logits(63, 2)).to(device)
    changes = changes_of_rows(request, np.array([-1], np.int64), 63)
    adjusted = AdjustedRows(2, 63, torch.device(device)).apply(logits, Piece([0, 1], changes))
    assert (adjusted != logits.double()).nonzero().tolist() == [[0, 3], [1, 3]]


def test_bf16_logits_are_taken_as_they_are(device: str) -> None:
    """Their exact values, in float64."""
    params = SamplingParams(seed=1, logit_bias=((5, 0.1),))
    logits = tensor(random_logits(63, 1)).bfloat16().to(device)
    request = VerifyRequest(params, [3], 1, [])
    changes = changes_of_rows(request, np.array([], np.int64), 63)
    adjusted = AdjustedRows(1, 63, torch.device(device)).apply(logits, Piece([0], changes))
    expected = logits.double()
    expected[0, 5] += 0.1
    assert torch.equal(adjusted, expected)


def test_rows_that_lie_apart_are_copied_each_to_its_place(device: str) -> None:
    """Runs of neighbours, and rows alone."""
    logits = tensor(*(random_logits(63, seed) for seed in range(9))).to(device)
    indices = [1, 2, 4, 7, 8]
    nothing = (np.empty(0, np.int64), np.empty((0, 4)))
    rows = AdjustedRows(9, 63, torch.device(device))
    adjusted = rows.apply(logits, Piece(indices, [nothing] * 5))
    assert torch.equal(adjusted, logits[indices].double())


@pytest.mark.parametrize("num_rows", [1, 63, 64, 65, 1009])
@pytest.mark.parametrize("num_changes", [0, 1, 9, 30])
def test_every_piece_has_room(num_rows: int, num_changes: int) -> None:
    """All rows in order; many changes make small pieces, and one row is always one."""
    changes: list[Changes] = [
        (np.arange(num_changes + row % 2), np.zeros((num_changes + row % 2, 4)))
        for row in range(num_rows)
    ]
    indices = list(range(5, 5 + 3 * num_rows, 3))
    pieces = list(pieces_of(indices, changes, 20))
    assert [row for piece in pieces for row in piece.rows] == indices
    assert [one for piece in pieces for one in piece.changes] == changes
    for piece in pieces:
        assert len(piece.rows) == len(piece.changes) <= adjusted_rows.MAX_ROWS
        assert len(piece.rows) == 1 or sum(len(ids) for ids, _ in piece.changes) <= 20
