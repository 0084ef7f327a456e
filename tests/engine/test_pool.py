"""Places are given once, and come back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qnext.engine.pool import Pool


def test_takes_all_or_nothing() -> None:
    pool = Pool(3)
    assert pool.free == pool.size == 3
    assert pool.take(4) is None and pool.free == 3
    assert sorted(pool.take(3) or []) == [0, 1, 2]
    assert pool.take(1) is None and pool.take(0) == []


def test_giving_back_twice_is_caught() -> None:
    pool = Pool(3)
    taken = pool.take(2)
    assert taken is not None
    pool.give(taken)
    with pytest.raises(AssertionError):
        pool.give(taken[:1])


@given(st.lists(st.integers(-3, 5), max_size=40))
def test_no_place_is_out_twice(moves: list[int]) -> None:
    pool, held = Pool(12), []  # type: Pool, list[list[int]]
    for move in moves:
        if move >= 0:
            fits = move <= pool.free
            taken = pool.take(move)
            assert (taken is not None) == fits
            held += [taken] if taken else []
        elif held:
            pool.give(held.pop(move % len(held)))
        out = [place for places in held for place in places]
        assert len(set(out)) == len(out) and set(out) <= set(range(12))
        assert pool.free + len(out) == 12
