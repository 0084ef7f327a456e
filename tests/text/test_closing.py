"""Ways to the end: short, allowed, and found where patterns and recursion mislead."""

from __future__ import annotations

from typing import Any

import pytest

from qnext.models import locate
from qnext.text.chat import Chat
from qnext.text.closing import closing, leads, nests_without_end
from qnext.text.lexicon import after

from .grammars import grammar


@pytest.fixture(scope="module")
def tiny() -> Chat:
    return Chat.from_pretrained(locate("tiny-instruct"))


OBJECT = {"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "integer"}}}


@pytest.mark.parametrize(
    ("schema", "begun", "end"),
    [
        ({"type": "object"}, "", "{}"),
        ({"type": "object"}, '{"a": [{"b', '":0}]}'),
        ({"type": "object"}, '{"a":"x\\', None),
        ({**OBJECT, "required": ["a", "b"]}, '{"a":"', '","b":0}'),
        ({**OBJECT, "required": ["a"]}, "", '{"a":""}'),
        ({"type": "array", "items": {"type": "boolean"}, "minItems": 2}, "[true", None),
        ({"type": "integer", "multipleOf": 7, "minimum": 10}, "", "14"),
        ({"type": "string", "pattern": "^[a-z]+@[a-z]+\\.com$"}, '"x', '@a.com"'),
        ({"anyOf": [{"type": "string", "minLength": 90}, {"type": "null"}]}, "", "null"),
    ],
)
def test_ways(tiny: Chat, schema: dict[str, Any], begun: str, end: str | None) -> None:
    compiled = grammar(tiny, schema=schema)
    lexicon, core = compiled.lexicon, compiled.core.deep_copy()
    core.consume_tokens(lexicon.encode(begun))
    state, _ = after(0, begun.encode())
    way = closing(lexicon, core, state, 100, compiled.taste)
    assert way is not None and leads(core, way) and not leads(core, way[:-1])
    if end is not None:
        assert tiny.tokenizer.decode(way) == end
    assert closing(lexicon, core, state, len(way), compiled.taste) == way
    shorter = closing(lexicon, core, state, len(way) - 1, compiled.taste)
    assert shorter is None or len(shorter) < len(way)


def test_nesting_without_end_is_told_from_length(tiny: Chat) -> None:
    long = grammar(tiny, schema={"type": "string", "minLength": 100_000})
    assert long.way is None and not nests_without_end(long.lexicon, long.core)
