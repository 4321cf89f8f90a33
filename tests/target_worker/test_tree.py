"""The token tree against a model that keeps every path as a list."""

from collections.abc import Sequence

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from shared.protocol.limits import MAX_PATH_TOKENS, MAX_TREE_TOKENS
from target_worker.tree import TokenTree

V = 4  # a tiny vocabulary, so that paths share and collide


def make_tree(confirmed: Sequence[int] = (1, 2)) -> TokenTree:
    return TokenTree(confirmed, vocab_size=1_000)


def test_a_path_from_the_confirmed_tokens_is_the_best_path() -> None:
    """One guess is offered as it came, cut to what is asked for."""
    tree = make_tree()
    assert tree.insert(2, (5, 6, 7))
    assert (tree.best_path(9), tree.best_path(2), tree.size) == ([5, 6, 7], [5, 6], 3)


def test_a_late_path_is_used_from_where_it_still_agrees() -> None:
    """A path grown before the last confirmation counts beyond it."""
    tree = make_tree()
    tree.confirm((5, 6))
    assert tree.insert(2, (5, 6, 7))
    assert tree.best_path(9) == [7]


def test_a_path_that_disagrees_with_confirmed_tokens_is_dropped() -> None:
    """Stale, wholly confirmed, from the future, or from before the beginning: no trace remains."""
    tree = make_tree()
    tree.confirm((5,))
    assert not tree.insert(2, (6, 7))  # disagrees
    assert not tree.insert(2, (5,))  # nothing new
    assert not tree.insert(4, (7,))  # grown from what nobody confirmed
    assert not tree.insert(-1, (1, 2, 5, 9))  # a base that cannot be
    assert not tree.insert(-(10**30), (1,))
    assert not tree.insert(10**30, (1,))
    assert (tree.size, tree.best_path(9)) == (0, [])


def test_confirming_keeps_what_is_right_and_drops_the_rest() -> None:
    """A branch that the correction took is ready at once."""
    tree = make_tree()
    tree.insert(2, (5, 6, 7))
    tree.insert(2, (5, 8, 9))
    tree.confirm((5, 8))
    assert (tree.best_path(9), tree.size) == ([9], 1)
    tree.confirm((3,))
    assert (tree.best_path(9), tree.size, bool(tree)) == ([], 0, False)


def test_the_first_guess_wins_over_a_later_alternative() -> None:
    """On equal support the earlier child is the drafter's better one."""
    tree = make_tree()
    tree.insert(2, (5,))
    tree.insert(2, (6, 7))
    assert tree.best_path(9) == [5]


def test_a_guess_that_keeps_growing_wins_over_one_sent_once() -> None:
    """Support counts the paths that went through a token."""
    tree = make_tree()
    tree.insert(2, (6, 7, 8))
    tree.insert(2, (5,))
    tree.insert(2, (5, 9))
    assert tree.best_path(9) == [5, 9]


def test_a_path_is_cut_before_an_id_outside_the_vocabulary() -> None:
    """Ids that the model cannot embed never leave the tree."""
    tree = make_tree()
    tree.insert(2, (5, -1, 6))
    tree.insert(2, (7, 1_000))
    tree.insert(2, (1 << 63,))
    assert (tree.best_path(9), tree.size) == ([5], 2)


def test_a_path_of_a_million_tokens_counts_to_its_bound() -> None:
    """What exceeds MAX_PATH_TOKENS is ignored."""
    tree = make_tree()
    tree.insert(2, tuple(range(500)) * 2_000)
    assert tree.size == MAX_PATH_TOKENS


def test_the_branch_longest_untouched_goes_first() -> None:
    """Overflow drops old branches, and the newest path is whole."""
    tree = make_tree()
    for branch in range(100):
        tree.insert(2, (branch, *range(20)))
        assert tree.size <= MAX_TREE_TOKENS
    tree.confirm((99,))
    assert tree.best_path(64) == list(range(20))
    tree = make_tree()
    for branch in range(100):
        tree.insert(2, (branch, *range(20)))
    tree.confirm((0,))
    assert not tree


class TreeMachine(RuleBasedStateMachine):
    """Inserts and confirmations in any order; the model keeps each path as it was sent."""

    def __init__(self) -> None:
        super().__init__()
        self.confirmed = [0, 1]
        self.paths: list[tuple[int, tuple[int, ...]]] = []
        self.tree = TokenTree(self.confirmed, vocab_size=V)

    @rule(back=st.integers(-2, 6), path=st.lists(st.integers(-1, V), max_size=8))
    def insert(self, back: int, path: list[int]) -> None:
        base_len = len(self.confirmed) - back
        self.tree.insert(base_len, tuple(path))
        if back >= 0:
            self.paths.append((base_len, tuple(path)))

    @rule(seed=st.integers(0, 10**6), length=st.integers(60, 100))
    def insert_hostile(self, seed: int, length: int) -> None:
        path = tuple((seed // (index + 1)) % V for index in range(length))
        self.tree.insert(len(self.confirmed), path)
        self.paths.append((len(self.confirmed), path[:MAX_PATH_TOKENS]))

    @rule(token_ids=st.lists(st.integers(0, V - 1), min_size=1, max_size=4))
    def confirm_anything(self, token_ids: list[int]) -> None:
        self.confirmed += token_ids
        self.tree.confirm(token_ids)

    @rule(num=st.integers(1, 5), corrected=st.integers(0, V - 1))
    def confirm_a_guess(self, num: int, corrected: int) -> None:
        token_ids = [*self.tree.best_path(num), corrected]
        self.confirmed += token_ids
        self.tree.confirm(token_ids)

    def live(self) -> set[tuple[int, ...]]:
        """Every beginning of every suggestion that agrees with what is confirmed."""
        found: set[tuple[int, ...]] = set()
        for base_len, path in self.paths:
            overlap = len(self.confirmed) - base_len
            if base_len < 0 or not 0 <= overlap < len(path):
                continue
            if list(path[:overlap]) != self.confirmed[base_len:]:
                continue
            rest = path[overlap:]
            bad = next((i for i, t in enumerate(rest) if not 0 <= t < V), len(rest))
            found.update(rest[:end] for end in range(1, bad + 1))
        return found

    @invariant()
    def the_best_path_is_a_suggestion_that_still_agrees(self) -> None:
        best = tuple(self.tree.best_path(16))
        assert not best or best in self.live()

    @invariant()
    def nothing_right_is_lost_and_memory_is_bounded(self) -> None:
        assert self.tree.size <= MAX_TREE_TOKENS
        if sum(len(path) for _, path in self.paths) <= MAX_TREE_TOKENS:
            assert self.tree.size == len(self.live())


TestTreeMachine = TreeMachine.TestCase
TestTreeMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
