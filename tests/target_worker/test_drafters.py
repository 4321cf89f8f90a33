"""One session and its drafter: asked at a bounded rate, given up when silent."""

import itertools

from target_worker.drafters import (
    ASK_AGAIN_S,
    LOST_AFTER_S,
    LOST_AFTER_VERDICTS,
    MAX_ASK_AGAIN_S,
    DraftLink,
    LinkState,
)


def test_unanswered_requests_become_rare() -> None:
    """Each interval is twice the one before, up to a bound."""
    link, now_s, asked = DraftLink(), 0.0, []
    while now_s < 300.0:
        if link.is_due(now_s):
            link.asked(now_s, 10)
            asked.append(now_s)
        now_s += 0.25
    gaps = [later - earlier for earlier, later in itertools.pairwise(asked)]
    assert gaps[:3] == [ASK_AGAIN_S, 2 * ASK_AGAIN_S, 4 * ASK_AGAIN_S]
    assert gaps[-1] == MAX_ASK_AGAIN_S


def test_an_engaged_drafter_is_not_asked_for() -> None:
    """One is enough; what was confirmed since the request is owed to it."""
    link = DraftLink()
    link.asked(0.0, 12)
    assert link.accepted("draft:a", 0.1)
    assert (link.state, link.draft_id, link.asked_len) == (LinkState.ENGAGED, "draft:a", 12)
    assert not link.is_due(1_000.0)
    assert not link.accepted("draft:b", 0.2)
    assert link.accepted("draft:a", 0.2)


def test_silence_with_something_to_say_loses_a_drafter() -> None:
    """Verdicts and time both; then another one may be asked at once."""
    link = DraftLink()
    link.asked(0.0, 12)
    link.accepted("draft:a", 0.0)
    link.heard(5.0)
    for _ in range(LOST_AFTER_VERDICTS - 1):
        link.told()
    assert not link.is_lost(5.0 + 10 * LOST_AFTER_S)
    link.told()
    assert not link.is_lost(5.0 + LOST_AFTER_S / 2)
    assert link.is_lost(5.0 + LOST_AFTER_S)
    link.closed(7.0)
    assert link.is_due(7.0)


def test_a_drafter_that_closes_at_once_is_not_asked_in_a_loop() -> None:
    """Accepted and closed without a guess: the interval still counts."""
    link = DraftLink()
    link.asked(0.0, 12)
    link.accepted("draft:a", 0.01)
    link.closed(0.02)
    assert not link.is_due(0.1)
    assert link.is_due(ASK_AGAIN_S)
