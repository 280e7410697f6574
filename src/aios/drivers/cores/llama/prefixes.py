"""The prefix tree: chunks of prompts whose KV is kept to be shared.

A node is a full chunk of 64 prompt tokens after the chunks of its parents. Only KV that was
computed as prompt is here, never decoded tokens (their bits differ), so a result does not depend on
what was in the tree when it was made. A node lies in cells, in RAM, on disk, or nowhere (then
whoever needs it next computes it again).

The naive twin is a tree that never holds anything: every sequence computes its own prompt.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from aios.drivers.cores.kept.disk import State
from aios.drivers.cores.llama.cells import BLOCK

Tokens = tuple[int, ...]


class Node:
    """One chunk. ``holder`` is the sequence id that marks its cells while it lies in a block."""

    __slots__ = (
        "block",
        "children",
        "depth",
        "holder",
        "image",
        "is_reused",
        "parent",
        "tokens",
        "used_at",
        "users",
        "waiting",
    )

    def __init__(self, parent: Node | None, tokens: Tokens) -> None:
        self.parent, self.tokens = parent, tokens
        self.depth: int = parent.depth + 1 if parent else -1  # its first position is depth * 64
        self.children: dict[Tokens, Node] = {}
        self.block: int | None = None
        self.holder = -1
        self.image: State | None = None
        self.users = 0  # sequences in cells that stand on it
        self.waiting = 0  # sequences paged out that will
        self.used_at = 0  # of the engine's turns
        self.is_reused = False  # has anybody but its maker stood on it?

    def __repr__(self) -> str:
        return (
            f"<node {self.depth}: block {self.block}, {self.users} users, {self.waiting} waiting>"
        )

    @property
    def start(self) -> int:
        """Its first position."""
        return self.depth * BLOCK

    @property
    def is_somewhere(self) -> bool:
        return self.block is not None or self.image is not None

    @property
    def cells(self) -> range:
        assert self.block is not None
        return range(self.block * BLOCK, (self.block + 1) * BLOCK)


class Prefixes:
    """The tree of one engine."""

    def __init__(self) -> None:
        self.root = Node(None, ())

    def path(self, tokens: Sequence[int], chunks: int) -> Iterator[Node]:
        """The nodes of the first chunks of *tokens*, as far as they are somewhere."""
        node = self.root
        for start in range(0, chunks * BLOCK, BLOCK):
            child = node.children.get(tuple(tokens[start : start + BLOCK]))
            if child is None or not child.is_somewhere:
                return
            node = child
            yield node

    def child(self, parent: Node | None, tokens: Tokens) -> Node:
        """The node of this chunk, made if it is new; it may be nowhere yet."""
        parent = parent or self.root
        found = parent.children.get(tokens)
        if found is None:
            found = parent.children[tokens] = Node(parent, tokens)
        return found

    def nodes(self) -> Iterator[Node]:
        pile = list(self.root.children.values())
        while pile:
            node = pile.pop()
            pile.extend(node.children.values())
            yield node

    def idle(self) -> Node | None:
        """The node in cells that nobody stands on and that was used longest ago, deepest first."""
        found = (n for n in self.nodes() if n.block is not None and not n.users)
        return min(found, key=lambda n: (n.used_at, -n.depth), default=None)

    def spare_image(self, *, in_ram: bool) -> Node | None:
        """The node in RAM (or on disk) that nobody waits for and that was used longest ago."""
        found = (
            n
            for n in self.nodes()
            if n.image is not None and n.image.is_in_ram == in_ram and not n.waiting
        )
        return min(found, key=lambda n: (n.used_at, -n.depth), default=None)

    def prune(self, node: Node) -> None:
        """Take out a node that is nowhere and that nobody needs, and its parents likewise."""
        while node.parent and not (
            node.children or node.users or node.waiting or node.is_somewhere
        ):
            if node.parent.children.get(node.tokens) is not node:
                return  # it was taken out before
            del node.parent.children[node.tokens]
            node = node.parent
