"""The prefix cache as plain data: against a twin that remembers whole texts, and rule by rule."""

from __future__ import annotations

from collections.abc import Sequence as Ids

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qnext.engine.cache import Checkpoint, Node, PrefixCache, Root
from qnext.engine.pages import Pages

STATE = 2  # pages that a state takes
A: Root = ("a", False)
Text = tuple[int, ...]


class Shelf:
    """A cache in some pages, and its twin: (root, text) -> the checkpoint that lies there."""

    def __init__(self, pages: int = 60, page_size: int = 3) -> None:
        self.pages, self.size = Pages(pages), page_size
        self.cache = PrefixCache(self.pages, page_size, STATE)
        self.held: dict[tuple[Root, Text], Checkpoint] = {}

    def put(self, tokens: Ids[int], root: Root = A, replays: int = 0) -> Checkpoint | None:
        """A sequence of its own computes `tokens`, has them kept, and goes."""
        text = tuple(tokens)
        pages = self.take(len(text))
        if pages is None:
            return None
        made = self.cache.insert(self.cache.cursor(root), root, text, len(text), pages, replays)
        if made is not None:
            self.held[root, text] = made
        self.pages.drop(pages)
        self.sync()
        return made

    def take(self, length: int) -> list[int] | None:
        count = -(-length // self.size)
        return self.pages.take(count) if self.cache.make_room(count) else None

    def sync(self) -> None:
        """Forget what was evicted for good."""
        self.held = {at: each for at, each in self.held.items() if each.state or each.key}

    def find(self, root: Root, tokens: Text, limit: int) -> Checkpoint | None:
        """Twin of `find`."""
        inside = [text for r, text in self.held if r == root and tokens[: len(text)] == text]
        best = max((text for text in inside if len(text) <= limit), key=len, default=None)
        return None if best is None else self.held[root, best]

    def known(self, root: Root, tokens: Text, limit: int) -> int:
        """Twin of the second thing that `find` says."""
        texts = [text for r, text in self.held if r == root]
        return max((min(limit, common(tokens, text)) for text in texts), default=0)

    def check(self) -> None:
        """The tree holds exactly what leads to something, and its pages are exactly those kept."""
        kept: list[int] = []
        texts: set[tuple[Root, Text]] = set()

        def visit(root: Root, node: Node, before: Text) -> int:
            text, live = before + node.tokens, 0
            assert node.attached and (node.parent is None or node.children or node.checkpoints)
            for tail, each in node.checkpoints.items():
                assert each.node is node and each.tail == tail and len(tail) < self.size
                assert each.length == len(text + tail) and each.root == root
                assert each.state or each.key, "a checkpoint that nobody holds"
                texts.add((root, text + tail))
                if each.state is not None:
                    live += 1
                    kept.extend(each.state)
                    assert (each.tail_page is not None) == bool(tail)
                    kept.extend([] if each.tail_page is None else [each.tail_page])
            for piece, child in node.children.items():
                assert child.parent is node and child.tokens == piece and len(piece) == self.size
                live += visit(root, child, text)
            assert live == node.live
            assert node.parent is None or (node.page is not None) == (live > 0)
            kept.extend([] if node.page is None else [node.page])
            return node.page is not None

        for root, top in self.cache._roots.items():
            assert top.children or top.checkpoints
            visit(root, top, ())
        assert texts == set(self.held)
        assert self.pages.kept == len(set(kept)) and self.pages.idle <= len(set(kept))


def common(one: Text, other: Text) -> int:
    return next(
        (i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(map(len, (one, other)))
    )


trunks = st.sampled_from([(0,) * 14, (0, 0, 0, 0, 1) * 3, (0, 0, 1, 1) * 3, (1,) * 9])
texts = st.builds(lambda trunk, length: trunk[:length], trunks, st.integers(1, 14))
roots = st.sampled_from([A, ("b", False), ("a", True)])
moves = st.one_of(
    st.tuples(st.just("put"), roots, texts),
    st.tuples(st.just("put"), roots, texts),
    st.tuples(st.just("find"), roots, texts),
    st.tuples(st.just("room"), roots, texts),
    st.tuples(st.just("remove"), roots, texts),
    st.tuples(st.just("learn"), roots, texts),
    st.tuples(st.just("second tier"), roots, texts),
)


@settings(deadline=None, max_examples=200)
@given(st.lists(moves, max_size=40), st.sampled_from([1, 2, 3, 20]), st.sampled_from([12, 25, 200]))
def test_any_life_of_a_cache_equals_its_twin(
    moves: list[tuple[str, Root, Text]], size: int, pages: int
) -> None:
    shelf = Shelf(pages, size)
    for kind, root, text in moves:
        if kind == "put":
            before = shelf.held.get((root, text))
            lay = before is not None and before.state is not None
            made = shelf.put(text, root)
            fits = -(-len(text) // size) + STATE <= pages
            assert made is not None or lay or not fits
        elif kind == "find":
            for limit in range(len(text) + 1):
                best, known = shelf.cache.find(root, text, limit)
                assert best is shelf.find(root, text, limit)
                assert known == shelf.known(root, text, limit)
        elif kind == "room":
            enough = shelf.cache.make_room(len(text))
            assert enough == (shelf.pages.free >= len(text)) == (len(text) <= pages)
            shelf.sync()
        elif (root, text) in shelf.held and kind == "remove":
            shelf.cache.remove(shelf.held.pop((root, text)))
        elif kind == "learn":
            shelf.cache.learn(root, text, str(text))
            shelf.held[root, text] = shelf.cache.find(root, text, len(text))[0] or pytest.fail("not learnt")
        elif (root, text) in shelf.held and kind == "second tier":
            shelf.held[root, text].key = str(text)
        shelf.check()
        assert shelf.pages.free + shelf.pages.idle == pages  # nobody uses any
    for each in shelf.held.values():
        assert shelf.cache.tokens(each) in {text for _, text in shelf.held}
    shelf.cache.clear()
    assert shelf.pages.free == pages


def test_what_is_found_says_where_it_lies() -> None:
    shelf = Shelf()
    made = shelf.put(range(8), replays=2)
    found, known = shelf.cache.find(A, tuple(range(20)), 19)
    assert found is made and made is not None and (known, made.length, made.replays) == (8, 8, 2)
    assert len(shelf.cache.path(made)) == 2 and made.tail == (6, 7) and len(made.state or ()) == STATE
    assert shelf.cache.tokens(made) == tuple(range(8))


def test_where_texts_branch_is_told_though_no_state_lies_there() -> None:
    shelf = Shelf()
    shelf.put([1, 2, 3, 4, 5, 6, 7, 8])
    assert shelf.cache.find(A, (1, 2, 3, 4, 5, 9, 9), 6) == (None, 5)
    assert shelf.cache.find(A, (1, 2, 3, 4, 5, 6, 7, 9, 9), 8) == (None, 7)
    assert shelf.cache.find(A, (1, 2, 3, 4, 5, 6, 7, 8, 9), 4) == (None, 4)
    assert shelf.cache.find(("b", False), (1, 2, 3), 2) == (None, 0)


def test_equal_pages_are_shared_and_the_own_ones_given_back() -> None:
    shelf = Shelf()
    shelf.put([1, 2, 3, 4, 5, 6, 7])
    text = (1, 2, 3, 4, 5, 6, 8, 9)
    pages = shelf.take(len(text)) or []
    own, free = list(pages), shelf.pages.free
    made = shelf.cache.insert(shelf.cache.cursor(A), A, text, 8, pages)
    assert made is not None and pages[:2] == shelf.cache.path(made) and not set(pages[:2]) & set(own)
    assert pages[2] == own[2] == made.tail_page
    assert shelf.pages.free == free + 2 - STATE
    shelf.pages.drop(pages)


def test_a_running_sequence_keeps_on_from_where_it_was() -> None:
    """A cursor walks down once; after evictions above it, it starts again."""
    shelf = Shelf(30)
    text = tuple(range(9))
    pages = shelf.take(9) or []
    cursor = shelf.cache.cursor(A)
    first = shelf.cache.insert(cursor, A, text, 4, pages)
    assert cursor.depth == 1 and first is not None
    shelf.cache.clear()
    assert not cursor.node.attached
    second = shelf.cache.insert(cursor, A, text, 9, pages)
    assert second is not None and cursor.depth == 3
    assert shelf.cache.find(A, text, 9)[0] is second and shelf.cache.path(second) == pages
    shelf.held[A, text] = second
    shelf.pages.drop(pages)
    shelf.check()


def test_nothing_is_left_of_a_salt_that_kept_nothing() -> None:
    shelf = Shelf()
    shelf.cache.cursor(("x", False))
    shelf.put([1, 2, 3, 4], ("y", False))
    shelf.cache.clear()
    assert not shelf.cache._roots


def test_what_was_used_most_for_its_room_stays() -> None:
    """Of two equal texts the one that was found again stays; a state that saves little goes first."""
    shelf = Shelf(60)
    often, seldom = shelf.put([1] * 12), shelf.put([2] * 12)
    little = shelf.put([2] * 12 + [3])
    assert often is not None and seldom is not None and little is not None
    shelf.cache.touch(often)
    order = []
    while shelf.cache.make_room(shelf.pages.free + 1):
        order.append([each.state is not None for each in (often, seldom, little)])
    gone = [each for each in order if each != [True, True, True]]
    assert gone[0] == [True, True, False]
    assert [True, False, False] in gone and gone[-1] == [False, False, False]


def test_what_was_of_worth_long_ago_goes_at_last() -> None:
    """Worth rises with each eviction, so that old merit does not hold out for ever."""
    shelf = Shelf(24)
    old = shelf.put([0] * 9)
    assert old is not None
    for _ in range(3):
        shelf.cache.touch(old)
    for token in range(1, 200):
        shelf.put([token] * 9)
        if old.state is None:
            return
    raise AssertionError("it stays for ever")


def test_room_that_cannot_be_made_evicts_nothing() -> None:
    shelf = Shelf(20)
    shelf.put([1] * 9)
    used = shelf.pages.take(shelf.pages.free - 1)
    assert not shelf.cache.make_room(1 + 5 + 1) and shelf.cache.evictions == 0
    assert shelf.cache.make_room(1 + 5) and shelf.cache.evictions == 1
    assert used is not None


def test_an_evicted_copy_of_the_second_tier_can_still_be_found() -> None:
    shelf = Shelf()
    made, lost = shelf.put([1, 2, 3, 4]), shelf.put([5, 6, 7, 8])
    assert made is not None and lost is not None
    made.key = "below"
    shelf.cache.clear()
    found, known = shelf.cache.find(A, (1, 2, 3, 4, 5), 4)
    assert found is made and made.state is None and known == 4
    assert shelf.cache.find(A, (5, 6, 7, 8, 9), 4) == (None, 0)
    assert shelf.put([1, 2, 3, 4]) is made and made.state is not None and made.key == "below"


def test_above_are_those_on_the_way_deepest_first() -> None:
    shelf = Shelf()
    lengths = (1, 2, 3, 5, 7)
    line = [shelf.put(range(length)) for length in lengths]
    shelf.put([0, 1, 2, 9])
    shelf.put([0, 8])
    last = line[-1]
    assert last is not None
    assert list(shelf.cache.above(last)) == line[-2::-1]
    assert list(shelf.cache.above(line[0] or pytest.fail())) == []


def test_hits_do_not_pile_up() -> None:
    shelf = Shelf(500)
    made = [shelf.put([token] * 5) for token in range(20)]
    for _ in range(50):
        for each in made:
            assert each is not None
            shelf.cache.touch(each)
    assert len(shelf.cache._heap) <= 4 * 20 + 65
    last = made[7]
    assert last is not None
    for _ in range(5000):
        shelf.cache.touch(last)
    assert len(shelf.cache._heap) <= 4 * 20 + 65
    shelf.cache.clear()
    assert shelf.pages.free == 500
