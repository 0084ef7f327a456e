"""Guesses: from the text itself against a search by hand, by the MTP head against a plain recursion of whole
forwards without any cache.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from qnext.engine.drafting import LONGEST, SHORTEST, LookupDrafter, lookup
from qnext.engine.engine import Engine
from qnext.engine.request import Request, SamplingParams
from qnext.engine.sequence import Sequence
from qnext.model.qwen3_next import Qwen3Next

from ..model.tiny import tiny_model
from .grammars import Counting
from .harness import MODEL, Watch, all_is_free, at_once, engine, greedy, request, tokens
from .rows import sequence


def searched(text: list[int], count: int) -> list[int]:
    """Twin of `lookup`."""
    for length in range(LONGEST, SHORTEST - 1, -1):
        for place in range(len(text) - length - 1, -1, -1):
            if text[place : place + length] == text[-length:]:
                return text[place + length : place + length + count]
    return []


@given(st.lists(st.sampled_from([0, 1, 2, 256, 65536, 2**24, 1 + 256]), max_size=40), st.integers(1, 8))
def test_lookup_finds_the_latest_place_of_the_longest_ending(text: list[int], count: int) -> None:
    assert lookup(text, count) == searched(text, count)


def test_lookup_prefers_the_longer_ending_and_then_the_later_place() -> None:
    assert lookup([1, 2, 3, 4, 9, 3, 4, 8, 1, 2, 3, 4], 3) == [9, 3, 4]
    assert lookup([3, 4, 9, 3, 4, 8, 7, 3, 4], 2) == [8, 7]
    assert lookup([3, 4, 3, 4, 3, 4], 4) == [3, 4]
    assert lookup([1, 2, 3], 4) == lookup([], 4) == lookup([5, 4], 2) == []


def test_each_sequence_is_guessed_from_its_own_text() -> None:
    made = [sequence((1, 2, 3, 1, 2)), sequence((4, 5, 6)), sequence((7, 8, 9, 7), answer=(8,))]
    LookupDrafter().draft(made, 2)
    assert [each.drafts for each in made] == [[3, 1], [], [9, 7]]


@dataclass
class Guesses:
    """Every guess that an engine makes: the text before it, what was guessed, and the scores [count, V] that
    it was chosen from."""

    made: Engine
    found: list[tuple[list[int], list[int], Tensor]] = field(default_factory=list)

    def __post_init__(self) -> None:
        drafter: Any = self.made._steps.guesser._mtp
        self.draft, drafter.draft = drafter.draft, self

    def __call__(self, sequences: list[Sequence], count: int, hidden: Tensor) -> None:
        runner, seen = self.made._steps.runner, list[Tensor]()
        plain = runner.scores

        def scores(hidden: Tensor) -> Tensor:
            seen.append(plain(hidden))
            return seen[-1]

        runner.scores = scores  # type: ignore[method-assign]
        self.draft(sequences, count, hidden)
        runner.scores = plain  # type: ignore[method-assign]
        assert len(seen) == count
        for each, part in zip(sequences, torch.stack(seen, 1), strict=True):
            assert len(each.drafts) == count
            self.found.append((list(each.tokens), list(each.drafts), part))


@torch.inference_mode()
def recursion(text: list[int], drafts: list[int], model: Qwen3Next = MODEL) -> Tensor:
    """The head's scores for each of these drafts after `text` and the drafts before it."""
    hidden, ids, found = model(torch.tensor(text[:-1])), list(text[1:]), []
    for draft in drafts:
        out = model.mtp_hidden(hidden, torch.tensor(ids))[-1:]
        found.append(model.logits(out[0]))
        if not model.config.mtp_normed_input:  # as if it were the trunk's: with the other norm's gains
            assert model.mtp is not None
            out = out / (1 + model.mtp.norm.weight) * (1 + model.norm.weight)
        hidden = torch.cat((hidden, out))
        ids.append(draft)
    return torch.stack(found)


def check(found: list[tuple[list[int], list[int], Tensor]], model: Qwen3Next = MODEL) -> int:
    """Compare guesses with the recursion -> how many there were."""
    for text, drafts, scores in found:
        torch.testing.assert_close(scores, recursion(text, drafts, model), atol=2e-4, rtol=2e-4)
        assert drafts == scores.argmax(-1).tolist()  # greedy requests are guessed greedily
    return sum(len(drafts) for _, drafts, _ in found)


@pytest.mark.parametrize("step_tokens", [1, 7, 500])
@pytest.mark.parametrize("fields", [{}, {"page_size": 3}, {"prefix_cache": False}], ids=str)
def test_the_heads_guesses_equal_a_plain_recursion(step_tokens: int, fields: dict[str, Any]) -> None:
    with engine(step_tokens=step_tokens, fixed_drafts=True, draft_tokens=3, **fields) as made:
        guesses = Guesses(made)
        with at_once(made):
            streams = [made.submit(request(length)) for length in (2, 3, 17, 33)]
        for stream, length in zip(streams, (2, 3, 17, 33), strict=True):
            assert tokens(stream) == list(greedy(length)[1])
        assert check(guesses.found) > 60
        assert all_is_free(made)


def test_a_head_that_takes_states_before_the_norm_is_given_them() -> None:
    model = tiny_model(initializer_range=0.1, mtp_normed_input=False)
    with engine(model, fixed_drafts=True, draft_tokens=3) as made:
        guesses = Guesses(made)
        assert tokens(made.submit(request(33))) == list(greedy(33)[1])
        assert check(guesses.found, model) > 20
    text, drafts, scores = guesses.found[0]
    assert (scores - recursion(text, drafts)).abs().max() > 1e-2


def test_guesses_after_a_restored_beginning_equal_the_recursion_too() -> None:
    prompt, answer = greedy(33)
    longer = Request((*prompt, *answer, 3, 1, 4), SamplingParams(temperature=0, max_tokens=8))
    with engine(fixed_drafts=True, draft_tokens=3) as made:
        tokens(made.submit(request(33)))
        guesses = Guesses(made)
        again, other = list(made.submit(request(33))), list(made.submit(longer))
        assert (again[-1].cached_tokens, other[-1].cached_tokens) == (32, 33 + 15 - 1)
        assert check(guesses.found) > 25


def test_guesses_after_steps_without_any_equal_the_recursion_too() -> None:
    """While nothing is guessed, the head reads now and then; then it must know all."""
    with engine(draft_tokens=3) as made:
        guesses, pace = Guesses(made), made._steps.guesser.rounds.pace
        watch = Watch(made)
        pace.choose = lambda answers: 3 if watch.steps % 7 == 0 else 0  # type: ignore[method-assign]
        tokens(made.submit(request(1, max_tokens=100)))
        assert check(guesses.found) > 20


def test_guesses_keep_to_the_grammar() -> None:
    with engine(fixed_drafts=True, draft_tokens=4) as made:
        guesses, watch = Guesses(made), Watch(made)
        never = torch.zeros(97).index_fill(0, torch.tensor(Counting.END), 1e4)
        watch.after = lambda rows, logits: logits - never  # it ends only where it must
        wish = Request(greedy(17)[0], SamplingParams(temperature=0, max_tokens=9), grammar=Counting())
        found = tokens(made.submit(wish))
    assert found == [*range(8), Counting.END]
    assert len(guesses.found) >= 2
    for text, drafts, _ in guesses.found:
        for count, draft in enumerate(drafts, len(text) - 17):
            if Counting.END in (text[17:] + drafts)[:count]:
                break
            assert draft in (count, Counting.END)


def test_without_a_head_the_text_itself_is_looked_at() -> None:
    """An answer that repeats itself is guessed right from its own beginning, and told in fewer steps."""
    model = tiny_model(initializer_range=0.1, mtp_layers=0)
    assert model.mtp is None
    prompt = greedy(17)[0]
    with engine(model, draft_tokens=0) as made:
        plain = tokens(made.submit(Request(prompt, SamplingParams(temperature=0, max_tokens=150))))
        slow = made.stats().counters
    with engine(model, draft_tokens=3, fixed_drafts=True) as made:
        assert tokens(made.submit(Request(prompt, SamplingParams(temperature=0, max_tokens=150)))) == plain
        fast = made.stats().counters
        assert fast.accepted_tokens <= fast.drafted_tokens
        assert fast.steps == slow.steps - fast.accepted_tokens
        text = list(prompt) + plain
        right = [searched(text[:n], 1) == text[n : n + 1] for n in range(18, len(text) - 1)]
        assert (fast.accepted_tokens > 0) == any(right)
