"""The token tree: every live guess of one session, rooted at its confirmed tokens.

Knows nothing of drafters, rounds or models. A path is a claim, not a fact: it may be late, doubled
or a lie, and can only ever cost the rows that verify it (docs/design.md, "The one rule").
"""

from collections.abc import Sequence

from shared.protocol.limits import MAX_PATH_TOKENS, MAX_TREE_TOKENS

# After an overflow the tree is cut to this, so that the cut is paid once in many insertions.
_KEPT_TOKENS = MAX_TREE_TOKENS * 3 // 4


class _Node:
    """One guessed token. `children` keeps insertion order: the first was guessed first."""

    __slots__ = ("children", "stamp", "support")

    def __init__(self) -> None:
        self.children: dict[int, _Node] = {}
        self.support = 0  # paths that went through here
        self.stamp = 0  # the last of them; never below a descendant's


class TokenTree:
    """A trie of guesses, at most MAX_TREE_TOKENS tokens of it.

    Args:
        confirmed: the confirmed tokens, prompt included.
        vocab_size: a path is cut before the first id outside it: the model could not embed it.
    """

    __slots__ = ("_clock", "_most", "_root", "_tail", "confirmed_len", "vocab_size")

    def __init__(self, confirmed: Sequence[int], *, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self.confirmed_len = len(confirmed)
        self._most = 0  # guessed tokens in the tree at most: counted anew when it might be full
        self._tail = list(confirmed[-MAX_PATH_TOKENS:])  # what a path may overlap with
        self._root = _Node()
        self._clock = 0

    def __bool__(self) -> bool:
        """Whether there is any guess."""
        return bool(self._root.children)

    @property
    def size(self) -> int:
        """Guessed tokens in the tree."""
        return len(_walk(self._root))

    def insert(self, base_len: int, token_ids: Sequence[int]) -> bool:
        """Take in one path, grown from the first `base_len` confirmed tokens.

        Returns:
            Whether it agrees with what is confirmed and reaches beyond it; otherwise it is dropped.
        """
        overlap = self.confirmed_len - base_len
        path = token_ids[:MAX_PATH_TOKENS]
        if not 0 <= overlap < len(path):
            return False  # grown from the future, or nothing new
        if overlap and self._tail[-overlap:] != list(path[:overlap]):
            return False
        self._clock += 1
        node = self._root
        for token_id in path[overlap:]:
            if not 0 <= token_id < self.vocab_size:
                break
            child = node.children.get(token_id)
            if child is None:
                child = node.children[token_id] = _Node()
                self._most += 1
            child.support += 1
            child.stamp = self._clock
            node = child
        if self._most > MAX_TREE_TOKENS:
            self._most = self.size
            if self._most > MAX_TREE_TOKENS:
                self._evict()
        return node is not self._root

    def best_path(self, max_tokens: int) -> list[int]:
        """The guess to verify next, at most `max_tokens` long; empty without any.

        At each step the child with the most support, the earliest on a tie. A drafter's first
        guess after a given prefix is its best one, and is sent again each time it grows; what it
        sends as an alternative comes later and grows less.
        """
        path: list[int] = []
        children = self._root.children
        while children and len(path) < max_tokens:
            if len(children) == 1:
                (token_id,) = children
            else:
                token_id = max(children.items(), key=_support)[0]
            path.append(token_id)
            children = children[token_id].children
        return path

    def confirm(self, token_ids: Sequence[int]) -> None:
        """Walk down by what a round confirmed. Guesses that disagree are gone, the others stay."""
        self.confirmed_len += len(token_ids)
        self._tail.extend(token_ids)
        del self._tail[:-MAX_PATH_TOKENS]
        node = self._root
        for token_id in token_ids:
            child = node.children.get(token_id)
            if child is None:
                self._root = _Node()
                self._most = 0
                return
            node = child
        self._root = node

    def _evict(self) -> None:
        """Drop whole branches, the longest untouched first, down to _KEPT_TOKENS."""
        stamps = sorted((node.stamp for node in _walk(self._root)), reverse=True)
        # A parent is touched with its child, so an older stamp is never above a newer one.
        oldest_kept = stamps[_KEPT_TOKENS] + 1
        pending = [self._root]
        while pending:
            node = pending.pop()
            node.children = {
                key: child for key, child in node.children.items() if child.stamp >= oldest_kept
            }
            pending.extend(node.children.values())
        self._most = self.size


def _support(item: tuple[int, _Node]) -> int:
    return item[1].support


def _walk(root: _Node) -> list[_Node]:
    """All nodes below `root`."""
    found: list[_Node] = []
    pending = [root]
    while pending:
        children = pending.pop().children.values()
        found.extend(children)
        pending.extend(children)
    return found
