"""What the scheduler makes of kept prefixes, priorities, guesses and failures; no model is run."""

from __future__ import annotations

from dataclasses import replace

from qnext.engine.config import EngineConfig
from qnext.engine.pages import Pages
from qnext.engine.plan import Clear, Restore
from qnext.engine.pool import Pool
from qnext.engine.scheduler import Scheduler
from qnext.engine.sequence import Sequence

from .rows import sequence
from .simulation import Simulation


def text(*parts: tuple[int, int]) -> tuple[int, ...]:
    """So many times each token."""
    return tuple(token for token, times in parts for _ in range(times))


def keeping(**fields: int) -> Simulation:
    return Simulation(
        **{"pages": 200, "page_size": 4, "slots": 8, "step_tokens": 1000, "keep": True, **fields}
    )


def test_the_urgent_come_first_and_among_them_the_oldest() -> None:
    simulation = Simulation(pages=100, page_size=4, slots=1, step_tokens=100)
    made = [simulation.add(3, 2, priority=priority) for priority in (1, 0, 0, 2, -1)]
    simulation.run()
    assert simulation.order == [made[i] for i in (4, 1, 2, 0, 3)]


def test_the_less_urgent_gives_way_even_if_it_is_older() -> None:
    simulation = Simulation(pages=6, page_size=2, slots=2, step_tokens=100)
    casual, urgent = simulation.add(4, 8, priority=1), simulation.add(4, 8)
    simulation.run()
    assert simulation.admissions[casual] == 2 and simulation.admissions[urgent] == 1
    assert simulation.finished == [urgent, casual] and casual.preemptions == 1


def test_equal_prompts_wait_for_the_first_of_them() -> None:
    simulation = keeping()
    made = [simulation.add(text((1, 60)), 5) for _ in range(4)]
    assert [piece.sequence for piece in simulation.step()] == made[:1]
    assert [(piece.sequence, piece.length) for piece in simulation.step()] == [
        (made[0], 1),
        *((each, 1) for each in made[1:]),
    ]
    simulation.run()
    assert simulation.work == 60 + 3 + 4 * 4
    assert [each.cached for each in made] == [0, 59, 59, 59]


def test_what_is_short_is_not_waited_for() -> None:
    simulation = keeping()
    made = [simulation.add(text((1, 20)), 5) for _ in range(4)]
    assert [piece.sequence for piece in simulation.step()] == made


def test_what_is_kept_already_is_not_waited_for() -> None:
    """The second prompt begins where a state lies already; what the first will leave is not much more."""
    simulation = keeping()
    simulation.add(text((1, 60)), 2)
    simulation.run()
    first, second = (simulation.add(text((1, 60), (2, 30)), 5) for _ in range(2))
    assert [piece.sequence for piece in simulation.step()] == [first, second]
    assert first.cached == second.cached == 59


def test_another_salt_neither_waits_nor_finds() -> None:
    simulation = keeping()
    first, second = (simulation.add(text((1, 60)), 5, cache_salt=salt) for salt in ("a", "b"))
    assert [piece.sequence for piece in simulation.step()] == [first, second]
    third = simulation.add(text((1, 60)), 5, cache_salt="c")
    simulation.run()
    assert (first.cached, second.cached, third.cached) == (0, 0, 0)
    assert not set(first.pages) & set(second.pages)


def test_whole_pages_are_shared_and_the_last_is_copied() -> None:
    simulation = keeping()
    first = simulation.add(text((1, 43)), 50)
    simulation.step()
    second = simulation.add(text((1, 43)), 50)
    simulation.step()
    assert second.cached == 42 and second.pages[:10] == first.pages[:10]
    assert second.pages[10] != first.pages[10]
    (move,) = simulation.plan.moves
    assert isinstance(move, Restore) and move.slot == second.slot and len(move.state) == 2
    assert move.page == (first.pages[10], second.pages[10])


def test_where_nothing_is_kept_a_slot_is_cleared() -> None:
    simulation = keeping()
    made = simulation.add(text((1, 43)), 50)
    simulation.step()
    assert simulation.plan.moves == [Clear(made.slot or 0)]


def test_the_third_text_finds_where_two_have_parted() -> None:
    simulation = keeping()
    for last in (7, 8, 9):
        made = simulation.add(text((1, 50), (last, 50)), 2)
        simulation.run()
        assert made.cached == (50 if last == 9 else 0)


def test_states_are_kept_where_messages_begin_and_before_the_answer() -> None:
    for length, found in ((31, 30), (45, 30), (75, 60), (90, 89)):
        simulation = keeping()
        first = simulation.add(text((1, 30), (2, 30), (3, 30)), 2, boundaries=(30, 60, 90, 1000))
        simulation.step()
        assert [mark for piece in simulation.plan.pieces for mark, _ in piece.saves] == [30, 60, 89]
        made = simulation.add((*first.request.prompt[:length], 4, 4), 2)
        simulation.run()
        assert made.cached == found, length


def test_a_boundary_just_before_the_answer_serves_for_it() -> None:
    simulation = keeping()
    simulation.add(text((1, 60)), 2, boundaries=(55,))
    simulation.step()
    assert [mark for piece in simulation.plan.pieces for mark, _ in piece.saves] == [55]


def test_without_a_spare_slot_a_prompt_is_cut_where_its_state_is_wanted() -> None:
    simulation = keeping(spare=1)
    simulation.add(text((1, 80)), 2, boundaries=(20, 40, 60))
    lengths = []
    while simulation.live:
        lengths += [piece.length for piece in simulation.step()]
    assert lengths == [40, 39, 1, 1]
    again = simulation.add(text((1, 39), (2, 5)), 2)
    simulation.run()
    assert again.cached == 20


def test_what_was_evicted_is_computed_again() -> None:
    simulation = keeping(pages=34)
    for token in (1, 2, 1):
        made = simulation.add(text((token, 60)), 3)
        simulation.run()
        assert made.cached == 0
    assert simulation.cache is not None and simulation.cache.evictions >= 2


def test_guesses_beyond_the_end_are_left_out() -> None:
    simulation = Simulation(pages=100, page_size=4, slots=2, step_tokens=100, drafts=4)
    made = simulation.add(10, 4)
    simulation.step()
    for room, count in ((3, 2), (2, 1), (1, 0)):
        made.drafts = [5, 5, 5, 5]
        assert made.room == room
        (piece,) = simulation.scheduler.plan().pieces
        assert piece.drafts == (5,) * count
        made.computed += 1
        made.extend(0, None)


def test_guesses_beyond_the_step_are_left_out() -> None:
    simulation = Simulation(pages=100, page_size=4, slots=3, step_tokens=8, drafts=3)
    made = [simulation.add(2, 20) for _ in range(3)]
    simulation.step()
    for each in made:
        each.drafts = [5, 5, 5]
    turns = [[len(piece.drafts) for piece in simulation.step()]]
    assert turns == [[3, 3]]
    assert simulation.step()[0].sequence is made[2]  # who has waited longest goes first


def test_a_lone_request_in_just_enough_room_never_gives_way() -> None:
    for drafts in range(5):
        for page_size in (1, 3):
            pages = -(-(20 + 12 + drafts) // page_size)
            simulation = Simulation(
                pages=pages, page_size=page_size, slots=2, step_tokens=50, drafts=drafts, keep=True
            )
            made = simulation.add(20, 12)
            simulation.run()
            assert made.preemptions == 0 and made.generated == 12


def failed(simulation: Simulation, made: Sequence) -> None:
    made.suspect = made.computed + 1
    simulation.scheduler.start_over(made)


def test_who_is_suspect_runs_alone_until_it_is_as_far_again() -> None:
    simulation = Simulation(pages=100, page_size=4, slots=3, step_tokens=16)
    first, second = simulation.add(4, 20), simulation.add(50, 20)
    for _ in range(3):
        simulation.step()
    assert second.computed == 12 + 15 + 15
    failed(simulation, second)
    lengths = []
    while second.suspect:
        (piece,) = simulation.step()
        assert piece.sequence is second
        lengths.append(piece.length)
    assert lengths == [16, 16, 16]
    assert {piece.sequence for piece in simulation.step()} == {first, second}


def test_a_suspect_without_a_place_does_not_hold_up_the_others() -> None:
    simulation = Simulation(pages=10, page_size=4, slots=3, step_tokens=2)
    first = simulation.add(4, 30)
    for _ in range(14):
        simulation.step()
    second = simulation.add(20, 4)
    for _ in range(9):
        simulation.step()
    assert 0 < second.computed < 20 and first.generated > 20
    failed(simulation, second)
    assert [piece.sequence for piece in simulation.step()] == [first]  # the suspect would not fit
    simulation.run()
    assert simulation.finished == [first, second] and first.preemptions == 0


def test_a_suspect_waits_for_nobody() -> None:
    simulation = keeping(step_tokens=16)
    simulation.add(text((1, 100)), 2)
    simulation.step()
    second = simulation.add(text((1, 120)), 2)
    second.suspect = 5
    assert [piece.sequence for piece in simulation.step()] == [second]
    simulation.run()
    assert second.cached == 0


def test_alone_each_prompt_is_cut_in_the_same_pieces_in_any_company() -> None:
    def pieces(others: int) -> list[tuple[int, int]]:
        config = EngineConfig(step_tokens=16, page_size=4, batch_invariant=True)
        scheduler = Scheduler(Pages(500), Pool(9), Pool(0), None, config, 0)
        made = sequence([1] * 50, limit=60)
        for n in range(others):
            other = sequence([1] * (7 * n + 3), limit=200)
            other.arrival = n - others
            other.request = replace(other.request, priority=-1)
            scheduler.add(other)
        scheduler.add(made)
        found = []
        while made.room > 0:
            for piece in scheduler.plan().pieces:
                if piece.sequence is made:
                    found.append((made.computed, piece.length))
                piece.sequence.computed += piece.length
                if not piece.sequence.pending:
                    piece.sequence.extend(0, None)
        return found

    alone = pieces(0)
    assert alone == [(0, 16), (16, 16), (32, 16), (48, 2), *((50 + n, 1) for n in range(9))]
    assert pieces(1) == pieces(5) == alone
