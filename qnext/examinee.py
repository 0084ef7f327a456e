"""Examinee: a model in this process as evaluations ask it.

Made by `cli`. Invariant: it is asked as any user of `LLM` asks, with no budget that would end a thought for
it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .engine.request import Request, SamplingParams
from .evals.subject import Query, Reply, Subject
from .llm import LLM, GenerationError

SCORED_TOKENS = 512  # of a text: what the embedded models were trained on at once


def subject(llm: LLM, name: str) -> Subject:
    """The model behind `llm`, to be examined."""
    chat = llm.chat_format
    tokenizer = chat.tokenizer

    def generate(query: Query) -> Reply:
        wishes: dict[str, Any] = {
            **llm.recommended,
            "seed": query.seed,
            "max_total_tokens": query.max_tokens,
        }
        if query.temperature is not None:
            wishes["temperature"] = query.temperature
        answer = llm.chat(query.messages, SamplingParams(**wishes), tools=list(query.tools) or None)
        after = answer.token_ids
        closed = True
        if chat.is_thinking:
            end = tokenizer.control["</think>"]
            closed = end in after
            after = after[after.index(end) :] if closed else ()
        opened = after.count(tokenizer.control.get("<tool_call>", -1)) if query.tools else 0
        return Reply(answer.text, answer.reasoning, answer.tool_calls, opened, closed)

    def score(text: str) -> tuple[float, int]:
        ids = (*tokenizer.encode(text)[: SCORED_TOKENS - 1], tokenizer.control["<|endoftext|>"])
        return _negative_log_likelihood(llm, ids), len(ids) - 1

    return Subject(
        name,
        chats=chat.has_template,
        thinks=chat.is_thinking,
        generate=generate,
        score=score,
        count_tokens=lambda text: len(tokenizer.encode(text)),
    )


def _negative_log_likelihood(llm: LLM, ids: Sequence[int]) -> float:
    """Of all tokens after the first, in nats."""
    sampling = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0)
    total = 0.0
    for output in llm.engine.submit(Request(tuple(ids), sampling)):
        if output.error is not None:
            raise GenerationError(output.error)
        total -= sum(report.logprob for report in output.prompt_logprobs)
    return total
