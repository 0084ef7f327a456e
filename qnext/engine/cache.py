"""The prefix cache: which beginnings of texts are in memory, and where.

Asked by `scheduler` when a sequence is admitted, told by it where states were kept. A tree over the tokens, a
page a node; a checkpoint is the recurrent state after some number of tokens, with the page that they end in
the middle of. What one request finds is the deepest checkpoint of its own beginning. Pure bookkeeping: pages
are numbers, whoever runs the model moves their contents. Invariant: every page kept here belongs to a
checkpoint, or lies on the way to one; roots are apart by salt.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, MutableSequence, Sequence
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush

from .pages import Pages

Root = tuple[str, bool]  # the salt, and whether positions are stretched: keys and values differ


@dataclass(eq=False, slots=True)
class Node:
    """One page of tokens after its parent's. `page` is None while only the second tier holds them.
    `live` counts what keeps the page: checkpoints in memory here, children with pages."""

    parent: Node | None
    tokens: tuple[int, ...]
    page: int | None = None
    live: int = 0
    attached: bool = True
    children: dict[tuple[int, ...], Node] = field(default_factory=dict)
    checkpoints: dict[tuple[int, ...], Checkpoint] = field(default_factory=dict)


@dataclass(eq=False, slots=True)
class Checkpoint:
    """The state after `length` tokens: those of `node`'s path and `tail`, which lie in `tail_page`. `state`
    are the pages that hold it (None: in the second tier only, under `key`); `replays` of its last tokens
    are not yet taken in, see `Packing`."""

    root: Root
    node: Node
    tail: tuple[int, ...]
    length: int
    state: list[int] | None = None
    tail_page: int | None = None
    replays: int = 0
    key: str | None = None
    uses: int = 1
    worth: float = 0.0


@dataclass(eq=False)
class Cursor:
    """How far down the tree a sequence has already been followed."""

    node: Node
    depth: int = 0


class PrefixCache:
    """Checkpoints of `state_pages` pages each, in the pages that nobody else needs."""

    def __init__(self, pages: Pages, page_size: int, state_pages: int) -> None:
        self.pages, self.page_size, self.state_pages = pages, page_size, state_pages
        self._roots: dict[Root, Node] = {}
        self._heap: list[tuple[float, int, Checkpoint]] = []
        self._clock = 0.0
        self._turn = 0
        self._count = 0  # checkpoints in memory
        self.evictions = 0

    def cursor(self, root: Root) -> Cursor:
        return Cursor(self._roots.get(root) or Node(None, (), attached=False))

    def find(self, root: Root, tokens: Sequence[int], limit: int) -> tuple[Checkpoint | None, int]:
        """The deepest checkpoint of at most `limit` tokens that begins `tokens`, and how many tokens of them
        the tree knows at all: where that is more, it is where texts branch."""
        node, depth, best = self._roots.get(root), 0, None
        if node is None:
            return None, 0
        while True:
            for checkpoint in node.checkpoints.values():
                inside = checkpoint.length <= limit and (best is None or checkpoint.length > best.length)
                if inside and tuple(tokens[depth : checkpoint.length]) == checkpoint.tail:
                    best = checkpoint
            child = node.children.get(tuple(tokens[depth : depth + self.page_size]))
            if child is None or depth + self.page_size > limit:
                break
            node, depth = child, depth + self.page_size
        rest = tuple(tokens[depth : min(limit, depth + self.page_size)])
        return best, depth + _common(rest, (*node.children, *node.checkpoints))

    def touch(self, checkpoint: Checkpoint) -> None:
        """A hit: it and the way to it are worth more."""
        checkpoint.uses += 1
        if checkpoint.state is not None:
            self._value(checkpoint)

    def path(self, checkpoint: Checkpoint) -> list[int]:
        """The pages of all its whole pages, from the first on (it must be in memory)."""
        found: list[int] = []
        node = checkpoint.node
        while node.parent is not None:
            assert node.page is not None
            found.append(node.page)
            node = node.parent
        return found[::-1]

    def insert(
        self,
        cursor: Cursor,
        root: Root,
        tokens: Sequence[int],
        length: int,
        pages: MutableSequence[int],
        replays: int = 0,
    ) -> Checkpoint | None:
        """Keep the state after `length` of the tokens, which a running sequence has in `pages`. Where the
        tree has a page of the same tokens already, `pages` is changed to share it. Returns the checkpoint
        whose `state` pages are to be written; None if it is there already, or there is no room."""
        state = self._take(self.state_pages)
        if state is None:
            return None
        node = self._follow(cursor, root, tokens, length, pages)
        tail = tuple(tokens[length - length % self.page_size : length])
        checkpoint = node.checkpoints.get(tail)
        if checkpoint is None:
            checkpoint = node.checkpoints[tail] = Checkpoint(root, node, tail, length)
        if checkpoint.state is not None:
            self.pages.drop(state)
            self.touch(checkpoint)
            return None
        checkpoint.state, checkpoint.replays = state, replays
        self._count += 1
        self.pages.keep(state)
        self.pages.drop(state)
        if tail:
            checkpoint.tail_page = pages[length // self.page_size]
            self.pages.keep([checkpoint.tail_page])
        node.live += 1
        self._value(checkpoint)
        return checkpoint

    def make_room(self, count: int) -> bool:
        """Evict until `count` pages are free; False (and nothing evicted) if that cannot be."""
        if self.pages.free + self.pages.idle < count:
            return False
        while self.pages.free < count:
            if not self._evict():
                return False
        return True

    def clear(self) -> None:
        """Let go of everything in memory."""
        while self._evict():
            pass

    def remove(self, checkpoint: Checkpoint) -> None:
        """Take a checkpoint out altogether: its state must never be found again."""
        self._release(checkpoint)
        if checkpoint.node.checkpoints.get(checkpoint.tail) is checkpoint:
            del checkpoint.node.checkpoints[checkpoint.tail]
            self._prune(checkpoint)

    def learn(self, root: Root, tokens: Sequence[int], key: str) -> None:
        """Enter a checkpoint that only the second tier holds."""
        node = self._roots.setdefault(root, Node(None, ()))
        whole = len(tokens) - len(tokens) % self.page_size
        for start in range(0, whole, self.page_size):
            piece = tuple(tokens[start : start + self.page_size])
            node = node.children.setdefault(piece, Node(node, piece))
        tail = tuple(tokens[whole:])
        checkpoint = node.checkpoints.setdefault(tail, Checkpoint(root, node, tail, len(tokens)))
        checkpoint.key = key

    def above(self, checkpoint: Checkpoint) -> Iterator[Checkpoint]:
        """The checkpoints on the way to this one, deepest first."""
        node: Node | None = checkpoint.node
        after = checkpoint.tail  # what follows the node on the way down
        while node is not None:
            on_the_way = [
                each
                for tail, each in node.checkpoints.items()
                if each is not checkpoint and after[: len(tail)] == tail
            ]
            yield from sorted(on_the_way, key=lambda each: -each.length)
            after, node = node.tokens, node.parent

    def tokens(self, checkpoint: Checkpoint) -> tuple[int, ...]:
        """All tokens up to a checkpoint."""
        pieces = [checkpoint.tail]
        node = checkpoint.node
        while node.parent is not None:
            pieces.append(node.tokens)
            node = node.parent
        return tuple(token for piece in reversed(pieces) for token in piece)

    def _take(self, count: int) -> list[int] | None:
        return self.pages.take(count) if self.make_room(count) else None

    def _follow(
        self, cursor: Cursor, root: Root, tokens: Sequence[int], length: int, pages: MutableSequence[int]
    ) -> Node:
        """The node of the last whole page within `length`, made (with the sequence's pages) as needed."""
        lost = cursor.node.parent is not None and cursor.node.page is None
        if lost or not cursor.node.attached:
            cursor.node, cursor.depth = self._roots.setdefault(root, Node(None, ())), 0
        node, depth = cursor.node, cursor.depth
        for place in range(depth, length // self.page_size):
            piece = tuple(tokens[place * self.page_size : (place + 1) * self.page_size])
            child = node.children.get(piece)
            if child is None:
                child = node.children[piece] = Node(node, piece)
            if child.page is None:
                child.page = pages[place]
                self.pages.keep([child.page])
                node.live += 1
            elif child.page != pages[place]:
                self.pages.use([child.page])
                self.pages.drop([pages[place]])
                pages[place] = child.page
            node = child
        cursor.node, cursor.depth = node, length // self.page_size
        return node

    def worth(self, checkpoint: Checkpoint) -> float:
        """Greedy-dual-size-frequency (Cherkasova 1998): tokens that would have to be computed again, times
        uses, per page that it holds, and an age that rises with every eviction."""
        above = next((c.length for c in self.above(checkpoint) if c.state is not None), 0)
        cost = checkpoint.length - above
        return self._clock + checkpoint.uses * cost / (self.state_pages + cost / self.page_size)

    def _value(self, checkpoint: Checkpoint) -> None:
        checkpoint.worth = self.worth(checkpoint)
        self._turn += 1
        heappush(self._heap, (checkpoint.worth, self._turn, checkpoint))
        if len(self._heap) > 4 * self._count + 64:  # most entries are of earlier worths
            self._heap = [entry for entry in self._heap if self._counts(entry)]
            heapify(self._heap)

    def _evict(self) -> bool:
        """Drop the checkpoint of least worth; False if there is none."""
        while self._heap:
            entry = heappop(self._heap)
            if self._counts(entry):
                self._clock, _, checkpoint = entry
                self.evictions += 1
                self._release(checkpoint)
                if checkpoint.key is None:
                    del checkpoint.node.checkpoints[checkpoint.tail]
                self._prune(checkpoint)
                return True
        return False

    @staticmethod
    def _counts(entry: tuple[float, int, Checkpoint]) -> bool:
        """Whether this is what its checkpoint is worth by now."""
        worth, _, checkpoint = entry
        return checkpoint.state is not None and worth == checkpoint.worth

    def _release(self, checkpoint: Checkpoint) -> None:
        """Give up the memory of a checkpoint, and of the pages that only led to it."""
        if checkpoint.state is None:
            return
        self._count -= 1
        self.pages.forget(checkpoint.state)
        if checkpoint.tail_page is not None:
            self.pages.forget([checkpoint.tail_page])
        checkpoint.state = checkpoint.tail_page = None
        node: Node | None = checkpoint.node
        while node is not None:
            node.live -= 1
            if node.live or node.page is None:
                break
            self.pages.forget([node.page])
            node.page, node = None, node.parent

    def _prune(self, checkpoint: Checkpoint) -> None:
        """Take out nodes that lead nowhere any more."""
        node = checkpoint.node
        while not node.children and not node.checkpoints:
            node.attached = False
            if node.parent is None:
                del self._roots[checkpoint.root]
                return
            del node.parent.children[node.tokens]
            node = node.parent


def _common(one: tuple[int, ...], others: Iterable[tuple[int, ...]]) -> int:
    """How many leading tokens are those of one of the others: there may be thousands, of texts that begin
    with the same system prompt."""
    count, begin = 0, one[:1]
    for other in others:
        while count < len(one) and other[: count + 1] == begin:
            count += 1
            begin = one[: count + 1]
    return count
