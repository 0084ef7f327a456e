"""Where each token of a row is, and where its keys and values go."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qnext.model.packing import Packing


def test_whole_sequences() -> None:
    packing = Packing.of([3, 1, 2])
    assert packing.lengths == (3, 1, 2) and packing.contexts == (0, 0, 0)
    assert packing.starts == (0, 3, 4) and packing.total == 6
    assert packing.positions.tolist() == [0, 1, 2, 0, 0, 1]
    assert packing.pages is packing.slots is packing.cells is None


@pytest.mark.parametrize("lengths", [[], [0], [3, -1]], ids=str)
def test_empty_sequences_are_refused(lengths: list[int]) -> None:
    with pytest.raises(ValueError, match="lengths"):
        Packing.of(lengths)


def test_cells_follow_the_pages() -> None:
    packing = Packing.cached([3, 1], [2, 4], [[7, 5], [2, 9]], [6, 0], page_size=4)
    assert packing.positions.tolist() == [2, 3, 4, 4]
    assert packing.cells is not None and packing.pages is not None and packing.slots is not None
    assert packing.cells.tolist() == [7 * 4 + 2, 7 * 4 + 3, 5 * 4 + 0, 9 * 4 + 0]
    assert packing.pages.tolist() == [[7, 5], [2, 9]] and packing.slots.tolist() == [6, 0]


@given(st.lists(st.tuples(st.integers(1, 20), st.integers(0, 20)), min_size=1, max_size=5), st.integers(1, 7))
def test_no_two_tokens_share_a_cell(sequences: list[tuple[int, int]], page_size: int) -> None:
    lengths, contexts = zip(*sequences, strict=True)
    pages, given = [], 0
    for length, context in sequences:
        need = -(-(length + context) // page_size)
        pages.append(list(range(given, given + need)))
        given += need
    packing = Packing.cached(lengths, contexts, pages, range(len(lengths)), page_size)
    assert packing.cells is not None
    wanted = [
        (row[position // page_size], position % page_size)
        for (length, context), row in zip(sequences, pages, strict=True)
        for position in range(context, context + length)
    ]
    assert [divmod(cell, page_size) for cell in packing.cells.tolist()] == wanted
    assert len(set(wanted)) == len(wanted)


def test_positions_leave_out_the_first_cells() -> None:
    packing = Packing.cached([3, 1], [1, 4], [[7, 5], [2, 9]], [6, 0], page_size=4, first=1)
    assert packing.positions.tolist() == [0, 1, 2, 3]
    assert packing.cells is not None
    assert packing.cells.tolist() == [7 * 4 + 1, 7 * 4 + 2, 7 * 4 + 3, 9 * 4 + 0]
    assert packing.first == 1


def test_a_token_is_stretched_where_its_sequence_is() -> None:
    row = ([3, 1, 2], [0] * 3, [[0], [1], [2]], [0, 1, 2], 4)
    packing = Packing.cached(*row, stretched=[False, True, False])
    assert packing.stretched is not None
    assert packing.stretched.tolist() == [False] * 3 + [True] + [False] * 2
    assert Packing.cached(*row).stretched is None


def test_accepted_drafts_come_before_the_tokens_that_they_precede() -> None:
    packing = Packing.cached(
        [3, 2, 1], [9, 9, 9], [[0], [1], [2]], [5, 3, 8], 16, drafts=[2, 0, 0], replays=[1, 2, 0]
    )
    window = packing.window
    assert window is not None
    assert window.lengths == (4, 4, 1)
    assert [x.tolist() for x in window.replayed] == [[5, 3, 3], [0, 0, 1]]
    own, replayed = [0, 1, 2, 3, 4, 5], ["5:0", "3:0", "3:1"]
    row = [[*own, *replayed][i] for i in window.index.tolist()]
    assert row == ["5:0", 0, 1, 2, "3:0", "3:1", 3, 4, 5]
    assert [row[i] for i in window.own.tolist()] == own
    (slots, places), rows = window.drafted
    assert (slots.tolist(), places.tolist(), rows.tolist()) == ([5, 5], [0, 1], [1, 2])


def test_without_drafts_there_is_no_window() -> None:
    assert Packing.of([2, 3]).window is None
    plain = Packing.cached([1, 1], [4, 4], [[0], [1]], [0, 1], 8)
    assert plain.window is None and plain.drafts == plain.replays == (0, 0) and plain.saves == ()


sequences = st.tuples(st.integers(1, 90), st.integers(0, 30), st.integers(0, 3), st.integers(0, 3))


@given(st.lists(sequences, min_size=1, max_size=5), st.integers(1, 3), st.integers(1, 16))
def test_a_row_is_cut_into_the_same_tokens(
    given: list[tuple[int, int, int, int]], units: int, unit: int
) -> None:
    lengths, contexts, drafts, replays = zip(*given, strict=True)
    drafts = tuple(map(min, drafts, (length - 1 for length in lengths)))
    pages = [[100 * n + i for i in range(40)] for n in range(len(lengths))]
    saves = [(n, count, 9) for n, length in enumerate(lengths) for count in {1, length // 2, length} - {0}]
    more = {"drafts": drafts, "replays": replays, "saves": saves, "first": 1}
    whole = Packing.cached(lengths, contexts, pages, range(len(lengths)), 4, **more)  # type: ignore[arg-type]
    rows, slots = whole.cut(units * unit, unit), whole.arrays.slots
    assert slots is not None
    assert [x for row in rows for x in row.positions.tolist()] == whole.positions.tolist()
    assert [x for row in rows for x in row.cells.tolist()] == whole.cells.tolist()  # type: ignore[union-attr]
    assert {row.first for row in rows} == {1}
    done, left = dict.fromkeys(range(len(lengths)), 0), []
    for row in rows:
        assert row.total <= units * unit + sum(row.drafts)
        table, held = row.table.tolist(), row.pages
        assert held is not None and len(held) == len(table) == len(row.lengths)
        left += [(table[n][3], done[table[n][3]] + count, slot) for n, count, slot in row.saves]
        for (_, length, context, n, some, replayed), own in zip(table, held.tolist(), strict=True):
            assert own == pages[n] and context == contexts[n] + done[n]
            assert replayed == (0 if done[n] else replays[n])
            done[n] += length
            assert some == (drafts[n] if done[n] == lengths[n] else 0)
            assert done[n] == lengths[n] or done[n] % unit == 0
    assert list(done.values()) == list(lengths)
    assert sorted(left) == sorted(saves)
