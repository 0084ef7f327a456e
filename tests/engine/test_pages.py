"""Pages are counted right: against a twin that remembers every user and every keeper by name."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from qnext.engine.pages import Pages

SIZE = 7


class Counting(RuleBasedStateMachine):
    """Users come and go with their pages; the cache keeps and forgets. The twin: page -> who holds it."""

    def __init__(self) -> None:
        super().__init__()
        self.pages = Pages(SIZE)
        self.users: dict[int, list[int]] = {}  # user -> pages
        self.kept: list[int] = []  # one entry a keep
        self.names = 0

    @property
    def used(self) -> set[int]:
        return {page for pages in self.users.values() for page in pages}

    @rule(count=st.integers(0, SIZE + 1))
    def take(self, count: int) -> None:
        free = set(range(SIZE)) - self.used - set(self.kept)
        taken = self.pages.take(count)
        if count > len(free):
            assert taken is None
        else:
            assert taken is not None and len(set(taken)) == count and set(taken) <= free
            self.users[self.names] = taken
            self.names += 1

    @precondition(lambda self: self.used or self.kept)
    @rule(data=st.data())
    def share(self, data: st.DataObject) -> None:
        some = data.draw(st.lists(st.sampled_from(sorted(self.used | set(self.kept))), unique=True))
        self.pages.use(some)
        self.users[self.names] = some
        self.names += 1

    @precondition(lambda self: self.users)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        self.pages.drop(self.users.pop(data.draw(st.sampled_from(sorted(self.users)))))

    @precondition(lambda self: self.used or self.kept)
    @rule(data=st.data())
    def keep(self, data: st.DataObject) -> None:
        some = data.draw(st.lists(st.sampled_from(sorted(self.used | set(self.kept))), max_size=3))
        self.pages.keep(some)
        self.kept += some

    @precondition(lambda self: self.kept)
    @rule(data=st.data())
    def forget(self, data: st.DataObject) -> None:
        page = data.draw(st.sampled_from(sorted(self.kept)))
        self.pages.forget([page])
        self.kept.remove(page)

    @invariant()
    def counts_agree(self) -> None:
        assert self.pages.free == SIZE - len(self.used | set(self.kept))
        assert self.pages.idle == len(set(self.kept) - self.used)
        assert self.pages.kept == len(set(self.kept))


TestCounting: Any = Counting.TestCase
TestCounting.settings = settings(max_examples=80, stateful_step_count=30, deadline=None)


def test_takes_all_or_nothing() -> None:
    pages = Pages(3)
    assert pages.take(4) is None and pages.free == 3
    assert sorted(pages.take(3) or []) == [0, 1, 2]
    assert pages.take(1) is None and pages.take(0) == []


@pytest.mark.parametrize("misuse", ["use", "drop", "keep", "forget"])
def test_a_free_page_can_neither_be_shared_nor_given_back(misuse: str) -> None:
    pages = Pages(3)
    (page,) = pages.take(1) or []
    pages.drop([page])
    with pytest.raises(AssertionError):
        getattr(pages, misuse)([page])
