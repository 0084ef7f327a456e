"""What every tier does, on each of them, and the index in which they know what they have."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qnext.engine.disk_tier import DiskTier
from qnext.engine.host_tier import HostTier
from qnext.engine.tier import Entry, Header, Index, entry_key

from .entries import FINGERPRINT, SIZE, entry, held, keys, same

AnyTier = HostTier | DiskTier
Make = Callable[[int], AnyTier]
HEADER = 250  # on disk, more than the bytes of a small entry's header
ROOM = SIZE + HEADER


@pytest.fixture(params=["host", "disk"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Make]:
    made: list[AnyTier] = []

    def build(entries: int) -> AnyTier:
        """A tier with room for so many."""
        if request.param == "host":
            made.append(HostTier(entries * SIZE))
        else:
            made.append(DiskTier(tmp_path, FINGERPRINT, entries * ROOM))
        return made[-1]

    yield build
    for tier in made:
        tier.close()


def test_gives_back_what_was_put(make: Make) -> None:
    tier = make(10)
    first = entry(1, 2, 3)
    second = entry(4, parent=first, kv=0)
    for each in (first, second):
        tier.put(each)
    assert same(tier.get(first.header.key), first) and same(tier.get(second.header.key), second)
    assert tier.headers() == [first.header, second.header]
    assert tier.get("00" * 16) is None and "00" * 16 not in tier
    tier.close()
    assert same(tier.get(first.header.key), first), "what was closed still reads"


def test_evicts_the_least_recently_used(make: Make) -> None:
    tier = make(3)
    a, b, c, d, e = (entry(token) for token in range(5))
    for each in (a, b, c):
        tier.put(each)
    tier.get(a.header.key)
    tier.put(d)
    assert held(tier) == keys(a, c, d) and tier.get(b.header.key) is None
    tier.put(c)  # again: a use
    tier.put(e)
    assert held(tier) == keys(c, d, e)
    assert tier.counts["evicted"] == 2


def test_evicts_leaves_first(make: Make) -> None:
    tier = make(4)
    root = entry(1)
    child = entry(2, parent=root)
    grandchild = entry(3, parent=child)
    other, more = entry(9), entry(8)
    for each in (root, child, grandchild, other):
        tier.put(each)
    tier.put(more)  # the line from the root is oldest: its end goes
    assert held(tier) == keys(root, child, other, more)
    tier.get(child.header.key)  # and with it the root is in use
    tier.put(entry(7))
    tier.put(entry(6))
    assert held(tier) == keys(root, child, entry(7), entry(6))


def test_the_limit_holds_at_every_moment(make: Make) -> None:
    tier = make(5)
    above: Entry | None = None
    for token in range(40):
        above = entry(token, parent=above if token % 3 else None)
        tier.put(above)
        assert len(held(tier)) <= 5
        assert above.header.key in tier


REFUSED = {
    "no parent": lambda: entry(2, parent=entry(1)),
    "too large": lambda: entry(1, kv=4 * ROOM),
    "too large with its ancestors": lambda: entry(6, parent=entry(5), kv=2 * ROOM),
    "another tenant's parent": lambda: entry(6, parent=entry(5), salt="other"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses_without_loss(make: Make, case: str) -> None:
    tier, known = make(3), [entry(5), entry(7)]
    for each in known:
        tier.put(each)
    tier.put(REFUSED[case]())
    assert held(tier) == keys(*known) and +tier.counts == {"refused": 1}


def test_tenants_are_apart(make: Make) -> None:
    tier = make(10)
    mine, yours = entry(1, 2, salt="mine"), entry(1, 2, salt="yours")
    tier.put(mine)
    tier.put(yours)
    assert held(tier) == keys(mine, yours) and len(keys(mine, yours)) == 2
    found = tier.get(mine.header.key)
    assert same(found, mine) and not same(found, yours)


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_is_positive(make: Make, limit: int) -> None:
    with pytest.raises(ValueError, match=r"limit_bytes: .* give a size"):
        make(limit)


def test_keys_differ_where_the_prefix_differs() -> None:
    parent = entry_key(None, "", (1,))
    different = [
        (None, "", (1,)),
        (None, "", (1, 0)),
        (None, "", (2**31,)),
        (None, "a", (1,)),
        (None, parent, (1,)),  # a salt that looks like a parent
        (parent, "", (1,)),
        (parent, "", (1, 2)),
        (None, "\x01\x00\x00\x00", (1,)),
        (None, "\ud800", (1,)),
    ]
    assert len({entry_key(*each) for each in different}) == len(different)
    assert entry_key(None, "a", [1, 2]) == entry_key(None, "a", (1, 2)) != entry_key(None, "a", (2, 1))
    assert entry_key(parent, "a", (1,)) == entry_key(parent, "b", (1,)), "the parent says whose it is"
    assert len(parent) == 32 and bytes.fromhex(parent)


def test_entries_are_flat_bytes() -> None:
    whole = entry(1)
    for bad in (torch.zeros(4), torch.zeros(2, 2, dtype=torch.uint8), whole.kv[::2]):
        with pytest.raises(AssertionError):
            replace(whole, kv=bad)
    with pytest.raises(AssertionError):
        replace(whole.header, tokens=())


LIMIT = 12
MOVES = st.lists(st.tuples(st.sampled_from("aaauur"), st.integers(0, 30), st.integers(1, 4)), max_size=60)


@given(MOVES)
def test_the_index_equals_its_twin(moves: list[tuple[str, int, int]]) -> None:
    """The twin keeps a list of all uses, and looks for the leaf whose last use is longest ago."""
    index = Index(LIMIT)
    there: dict[str, tuple[Header, int]] = {}
    uses: list[list[str]] = []  # of an entry, and so of its ancestors

    def line(key: str | None) -> list[str]:
        return [] if key is None else [key, *line(there[key][0].parent)]

    def leaves() -> list[str]:
        return [key for key in there if all(header.parent != key for header, _ in there.values())]

    for number, (move, pick, size) in enumerate(moves):
        known = sorted(there)
        chosen = known[pick % len(known)] if known else None
        if move == "a":
            parent = chosen if pick % 3 else None
            header = Header(entry_key(parent, "", (number,)), parent, "", (number,))
            fits = size + sum(there[key][1] for key in line(parent)) <= LIMIT
            assert index.takes(header, size) == fits
            if fits:
                index.add(header, size)
                there[header.key] = header, size
                uses.append(line(header.key))
            evicted = []
            while sum(size for _, size in there.values()) > LIMIT:
                last = {key: max(i for i, used in enumerate(uses) if key in used) for key in leaves()}
                evicted.append(min(leaves(), key=last.__getitem__))
                del there[evicted[-1]]
            assert list(index.evict()) == evicted
        elif chosen and move == "u":
            index.use(chosen)
            uses.append(line(chosen))
        elif chosen:
            gone = {key for key in there if chosen in line(key)}
            assert set(index.remove(chosen)) == gone
            there = {key: value for key, value in there.items() if key not in gone}
        assert set(index) == set(there) and index.bytes == sum(size for _, size in there.values())
        seen: set[str | None] = {None}
        for header in index.headers():
            assert header.parent in seen
            seen.add(header.key)
