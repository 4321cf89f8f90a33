"""Cuts a round into passes of a bounded number of rows, in the order of its spans."""

from collections.abc import Iterator, Sequence

from shared.engine.spans import Span


def passes(spans: Sequence[Span], max_rows: int) -> Iterator[list[Span]]:
    """Passes of at most `max_rows` rows; a span that does not fit goes on in the next one.

    What each piece asks logits for is what its span asks for: all of them together, in order.
    """
    piece: list[Span] = []
    room = max_rows
    for span in spans:
        done, num_rows = 0, len(span.token_ids)
        first_logit = num_rows - span.num_logits
        while done < num_rows:
            end = min(num_rows, done + room)
            num_logits = max(0, end - max(done, first_logit))
            tokens = span.token_ids[done:end]
            piece.append(Span(tokens, span.start + done, span.block_ids, num_logits))
            room -= end - done
            done = end
            if room == 0:
                yield piece
                piece, room = [], max_rows
    if piece:
        yield piece
