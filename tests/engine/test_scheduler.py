"""The scheduler on its own: sequences without a model, step after step, with every rule checked at each."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qnext.engine.sequence import Sequence

from .rows import sequence
from .simulation import Simulation


def test_prompts_come_in_order_in_pieces_after_answers() -> None:
    simulation = Simulation(pages=100, page_size=4, slots=10, step_tokens=8)
    a, b, c = simulation.add(3, 5), simulation.add(10, 5), simulation.add(2, 5)

    def taken() -> list[tuple[Sequence, int]]:
        return [(piece.sequence, piece.length) for piece in simulation.step()]

    assert taken() == [(a, 3), (b, 5)]
    assert taken() == [(a, 1), (b, 5), (c, 2)]
    assert taken() == [(a, 1), (b, 1), (c, 1)]


def test_a_prompt_comes_in_only_where_all_of_it_fits() -> None:
    simulation = Simulation(pages=10, page_size=4, slots=4, step_tokens=24)
    first, second = simulation.add(22, 2), simulation.add(17, 2)
    assert [piece.sequence for piece in simulation.step()] == [first]  # six pages: four of five are left
    assert [piece.sequence for piece in simulation.step()] == [first]
    assert [piece.sequence for piece in simulation.step()] == [second]


def test_no_more_run_than_there_are_slots() -> None:
    simulation = Simulation(pages=100, page_size=4, slots=2, step_tokens=100)
    for _ in range(5):
        simulation.add(3, 4)
    assert len(simulation.step()) == 2
    simulation.run()
    assert len(simulation.finished) == 5 and simulation.preemptions == 0


def test_the_youngest_gives_way_and_comes_back_first() -> None:
    simulation = Simulation(pages=6, page_size=2, slots=2, step_tokens=100)
    first, second, third = simulation.add(4, 8), simulation.add(4, 8), simulation.add(3, 1)
    simulation.run()
    assert simulation.order == [first, second, second, third]


def test_what_gave_way_keeps_its_answer() -> None:
    simulation = Simulation(pages=6, page_size=2, slots=5, step_tokens=100)
    made = [simulation.add(4, 8), simulation.add(4, 8)]
    simulation.run()
    assert simulation.preemptions >= 1
    assert [each.generated for each in made] == [8, 8]


@pytest.mark.parametrize("running", [True, False])
def test_release_frees_whatever_is_held(running: bool) -> None:
    simulation = Simulation(pages=9, page_size=2, slots=1, step_tokens=6)
    first, second = simulation.add(10, 5), simulation.add(4, 5)
    simulation.step()
    simulation.scheduler.release(first if running else second)
    assert simulation.live == [second if running else first]
    simulation.scheduler.release(first if running else second)  # once more changes nothing
    simulation.scheduler.release(sequence())
    simulation.run()
    assert simulation.all_is_free()


def failing(running: list[Sequence]) -> st.SearchStrategy[list[Sequence]]:
    """Some of them, in an order: that of a set would be another one each time."""
    return st.lists(st.sampled_from(running), unique=True)


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_every_rule_holds_whatever_comes(data: st.DataObject) -> None:
    page_size = data.draw(st.integers(1, 5), label="page size")
    drafts = data.draw(st.integers(0, 4), label="drafts")
    pages = data.draw(st.integers(-(-(40 + drafts) // page_size), 60), label="pages")
    simulation = Simulation(
        pages=pages,
        page_size=page_size,
        slots=data.draw(st.integers(1, 6), label="slots"),
        step_tokens=data.draw(st.sampled_from([1, 2, 7, 30, 1000]), label="step tokens"),
        drafts=drafts,
        keep=data.draw(st.booleans(), label="keep"),
        spare=data.draw(st.integers(0, 2), label="spare slots"),
    )
    shapes = st.tuples(st.integers(1, 25), st.integers(1, 15))  # together at most 40: each fits alone
    texts = data.draw(st.lists(st.lists(st.integers(0, 1), min_size=25, max_size=25), min_size=1, max_size=3))
    for _ in range(data.draw(st.integers(1, 12), label="moves")):
        for length, answer in data.draw(st.lists(shapes, max_size=3), label="arrivals"):
            text = data.draw(st.sampled_from(texts), label="text")[:length]
            simulation.add(tuple(text), answer, priority=data.draw(st.integers(0, 1), label="priority"))
        for _ in range(data.draw(st.integers(0, 6), label="steps")):
            simulation.step()
        if simulation.live and data.draw(st.booleans(), label="abort"):
            victim = data.draw(st.integers(0, len(simulation.live) - 1), label="who")
            simulation.scheduler.release(simulation.live[victim])
        if simulation.scheduler.running and data.draw(st.booleans(), label="failure"):
            for each in data.draw(failing(simulation.scheduler.running), label="in it"):
                each.suspect = min(each.computed + 1, len(each.tokens))
                simulation.scheduler.start_over(each)
    simulation.run()
    assert simulation.all_is_free()
    assert all(each.generated == each.request.sampling.max_tokens for each in simulation.finished)


def test_a_long_prompt_is_not_passed_over_for_ever() -> None:
    """Short requests arrive without end; the long one needs nearly all pages at once."""
    simulation = Simulation(pages=40, page_size=4, slots=8, step_tokens=32)
    for _ in range(8):
        simulation.add(8, 20)
    for _ in range(5):
        simulation.step()
    long = simulation.add(150, 4)
    for _ in range(200):
        simulation.add(8, 20)
        simulation.step()
        if long in simulation.finished:
            return
    raise AssertionError("the long prompt starves")


def test_answers_go_on_while_a_long_prompt_is_taken_in() -> None:
    simulation = Simulation(pages=100, page_size=4, slots=8, step_tokens=16)
    short = simulation.add(4, 40)
    simulation.step()
    simulation.add(200, 4)
    for _ in range(10):
        assert short in [piece.sequence for piece in simulation.step()]


@pytest.mark.parametrize("pages,slots", [(30, 16), (60, 16), (100, 32)])
def test_giving_way_costs_little(pages: int, slots: int) -> None:
    """Under far too much load, work done twice stays less than the work, and nobody goes to and fro."""
    simulation = Simulation(pages=pages, page_size=4, slots=slots, step_tokens=64)
    shapes = [(5 + 13 * i % 40, 10 + 7 * i % 50) for i in range(60)]
    for shape in shapes:
        simulation.add(*shape)
    simulation.run()
    needed = sum(prompt + answer - 1 for prompt, answer in shapes)
    assert 0 < simulation.preemptions < 2 * len(shapes)
    assert needed < simulation.work < 2 * needed
