"""How a sequence grows and why it ends."""

from __future__ import annotations

import pytest

from qnext.engine.request import Output, Reasoning, SamplingParams, TokenLogprob
from qnext.engine.sequence import Sequence

from .grammars import Counting
from .rows import sequence

THINK = Reasoning(end=50, close=(60, 50, 61))


def grow(made: Sequence, tokens: list[int]) -> list[Output]:
    """Feed sampled tokens until the sequence ends."""
    outputs = []
    for token in tokens:
        outputs.append(made.extend(token, None))
        if outputs[-1].finish_reason:
            break
    return outputs


def gained(outputs: list[Output]) -> list[int]:
    return [token for output in outputs for token in output.token_ids]


def test_pending_and_generated() -> None:
    made = sequence((4, 5, 6), SamplingParams(presence_penalty=1.0))
    assert (made.pending, made.generated) == (3, 0)
    made.computed = 3
    made.extend(7, None)
    assert (made.pending, made.generated, made.tokens) == (1, 1, [4, 5, 6, 7])
    made.computed = 0  # it gave way: all is to be computed anew, what it generated stays
    assert (made.pending, made.generated) == (4, 1)
    assert made.history is not None
    assert (made.history.ids.tolist(), made.history.times.tolist()) == ([7], [1])


@pytest.mark.parametrize(
    "sampling,eos,tokens,reason",
    [
        (SamplingParams(max_tokens=2), (), [9, 9], "length"),
        (SamplingParams(max_total_tokens=3), (), [9, 9, 9], "length"),
        (SamplingParams(stop_token_ids=(8,)), (), [9, 8], "stop"),
        (SamplingParams(), (7, 8), [9, 8], "stop"),
        (SamplingParams(max_tokens=2), (8,), [9, 8], "stop"),
        (SamplingParams(ignore_eos=True, max_tokens=3), (8,), [9, 8, 8], "length"),
        (SamplingParams(ignore_eos=True, stop_token_ids=(8,)), (8,), [9, 8], "stop"),
        (SamplingParams(), (), [9] * 5, "length"),  # limit 8, prompt 3
    ],
)
def test_ends(sampling: SamplingParams, eos: tuple[int, ...], tokens: list[int], reason: str) -> None:
    outputs = grow(sequence(sampling=sampling, eos=eos, limit=8), [*tokens, 9, 9, 9])
    assert gained(outputs) == tokens
    assert [output.finish_reason for output in outputs] == [None] * (len(tokens) - 1) + [reason]


def test_max_tokens_counts_the_answer_alone() -> None:
    made = sequence(sampling=SamplingParams(max_tokens=2), reasoning=THINK)
    assert gained(grow(made, [1, 2, 3, 4, 50, 5, 6, 7])) == [1, 2, 3, 4, 50, 5, 6]


def test_max_total_tokens_counts_both() -> None:
    made = sequence(sampling=SamplingParams(max_total_tokens=4), reasoning=THINK)
    assert gained(grow(made, [1, 2, 50, 4, 5])) == [1, 2, 50, 4]


def test_without_reasoning_its_end_is_a_token_like_others() -> None:
    made = sequence(sampling=SamplingParams(max_tokens=3, thinking_budget=1))
    assert gained(grow(made, [1, 50, 2, 3])) == [1, 50, 2]


def test_a_spent_budget_closes_the_thinking() -> None:
    made = sequence(sampling=SamplingParams(max_tokens=3, thinking_budget=2), reasoning=THINK)
    outputs = grow(made, [1, 2, 3, 4, 5])
    assert [output.token_ids for output in outputs] == [(1,), (2, 60, 50, 61), (3,), (4,)]
    assert outputs[-1].finish_reason == "length"  # 61, 3 and 4 are the answer
    assert made.tokens == [1, 2, 3, 1, 2, 60, 50, 61, 3, 4]
    assert made.pending == 10


def test_thinking_that_ends_within_its_budget_is_left_alone() -> None:
    made = sequence(sampling=SamplingParams(max_tokens=2, thinking_budget=2), reasoning=THINK)
    assert gained(grow(made, [1, 50, 3, 4])) == [1, 50, 3, 4]


def test_an_end_within_the_thinking_wins_over_the_budget() -> None:
    made = sequence(sampling=SamplingParams(thinking_budget=2), reasoning=THINK, eos=(9,))
    assert [output.token_ids for output in grow(made, [1, 9])] == [(1,), (9,)]


@pytest.mark.parametrize("total,tokens", [(2, [1, 2]), (3, [1, 2, 60]), (4, [1, 2, 60, 50])])
def test_closing_words_stop_at_the_limit_too(total: int, tokens: list[int]) -> None:
    made = sequence(sampling=SamplingParams(thinking_budget=2, max_total_tokens=total), reasoning=THINK)
    outputs = grow(made, [1, 2, 3, 4])
    assert gained(outputs) == tokens == made.tokens[3:]
    assert outputs[-1].finish_reason == "length"


def test_logprobs_match_the_tokens() -> None:
    made = sequence(sampling=SamplingParams(thinking_budget=1, logprobs=1), reasoning=THINK)
    report = TokenLogprob(7, -0.5, ((7, -0.5),))
    output = made.extend(7, report)
    assert output.logprobs[0] == report
    assert [(entry.token_id, entry.logprob) for entry in output.logprobs[1:]] == [(60, 0), (50, 0), (61, 0)]
    assert made.extend(8, None).logprobs == ()


def test_a_thought_that_gives_up_is_closed_where_a_grammar_waits() -> None:
    """The end token is not told: the closing words stand in its place."""
    closing = Reasoning(end=50, close=(60, 50))
    made = sequence(sampling=SamplingParams(logprobs=1), reasoning=closing, eos=(9,), grammar=Counting())
    made.extend(5, TokenLogprob(5, -1.0))
    given = made.extend(9, TokenLogprob(9, -2.0))
    assert (given.token_ids, given.finish_reason, made.reasoning) == ((60, 50), None, False)
    assert given.logprobs == (TokenLogprob(60, 0.0), TokenLogprob(50, 0.0))
    assert made.tokens[-3:] == [5, 60, 50]
    assert made.extend(Counting.END, None).token_ids == (Counting.END,)
