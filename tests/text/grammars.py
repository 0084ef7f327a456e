"""What tests of grammars share: models that want the worst, and answers drawn from them."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np

from qnext.text.chat import Chat, Prompt
from qnext.text.grammar import answer_spec
from qnext.text.grammar_compiler import Grammar
from qnext.text.matcher import Matcher

PROMPT = Prompt((0,))
MODELS = ("uniform", "long", "space", "digits", "open", "close")
_LIKED: dict[str, Callable[[bytes], float]] = {
    "uniform": lambda token: 0,
    "long": lambda token: len(token) - 100 * token.count(b'"'),
    "space": lambda token: 100 * token.count(b" ") + 100 * token.count(b"\n") - len(token),
    "digits": lambda token: 100 * sum(48 <= byte < 58 for byte in token),
    "open": lambda token: 100 * sum(byte in b'[{":,' for byte in token),
    "close": lambda token: 100 * sum(byte in b"]}" for byte in token) - token.count(b","),
}


def grammar(chat: Chat, **wish: object) -> Grammar:
    """`wish` is what `answer_spec` takes; `schema` stands for a response_format with it."""
    if "schema" in wish:
        wish["response_format"] = {"type": "json_schema", "json_schema": {"schema": wish.pop("schema")}}
    spec = answer_spec(**wish)  # type: ignore[arg-type]
    assert spec is not None
    return chat.grammar(spec, PROMPT)


def scores(chat: Chat, model: str) -> np.ndarray:
    """How much a model likes each token, save for chance."""
    tokens = [chat.tokenizer.token_bytes(i) for i in range(chat.tokenizer.vocab_size)]
    return np.array([_LIKED[model](token) for token in tokens], dtype=float)


def draw(
    chat: Chat, matcher: Matcher, liking: np.ndarray, room: int, seed: int, back: float = 0.1
) -> tuple[list[int], bool]:
    """An answer of at most `room` tokens, with copies that go elsewhere on the way, and whether it has ended.
    The end-of-answer token is not among them."""
    rng, chance = np.random.default_rng(seed), random.Random(seed)
    ids: list[int] = []
    while len(ids) < room:
        allowed = matcher.allowed(room - len(ids))
        assert allowed.dtype == bool and allowed.any()
        wanted = np.where(allowed, liking[: len(allowed)] + rng.gumbel(size=len(allowed)), -np.inf)
        token = int(wanted.argmax())
        if chance.random() < back:
            other = matcher.copy()
            other.accept(token)
            if token not in chat.eos_token_ids and room - len(ids) > 1:
                again = other.allowed(room - len(ids) - 1)
                further = other.copy()
                further.accept(int(rng.choice(np.flatnonzero(again))))
                further.allowed(room)
                assert np.array_equal(other.allowed(room - len(ids) - 1), again)
            assert np.array_equal(matcher.allowed(room - len(ids)), allowed)
        if token in chat.eos_token_ids:
            matcher.accept(token)
            assert np.flatnonzero(matcher.allowed(1)).tolist() == sorted(chat.eos_token_ids)
            return ids, True
        assert token not in chat.tokenizer.control_ids or chat.tokenizer.token_bytes(token) in (
            b"<tool_call>",
            b"</tool_call>",
        )
        matcher.accept(token)
        ids.append(token)
    return ids, False
