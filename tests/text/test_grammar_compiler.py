"""Compiled grammars: what they accept, however it is cut into tokens, and what is refused in plain words."""

from __future__ import annotations

import json
import random
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jsonschema
import pytest

from qnext.models import locate
from qnext.text.chat import Chat, Prompt
from qnext.text.events import ContentDelta, Finish, ToolCallDelta
from qnext.text.grammar import GrammarError, answer_spec
from qnext.text.grammar_compiler import Grammar
from qnext.text.matcher import Matcher

from .grammars import MODELS, draw, grammar, scores

CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
NODE = {
    "type": "object",
    "properties": {"next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}, "days": {"minimum": 3}},
    "required": ["next"],
    "additionalProperties": False,
}
DEFINED = {**NODE, "$defs": {"node": NODE}}
TOOLS = [
    {"type": "function", "function": {"name": "get", "parameters": CITY}},
    {"type": "function", "function": {"name": "get_weather", "parameters": DEFINED}},
    {"type": "function", "function": {"name": 'na"me'}},
]


@pytest.fixture(scope="module")
def tiny() -> Chat:
    return Chat.from_pretrained(locate("tiny-instruct"))


@pytest.fixture(scope="module", params=["embedded", "normalising"])
def chat(request: pytest.FixtureRequest, tiny: Chat, chats: dict[str, Chat]) -> Chat:
    """The embedded models' tokenizer, and one that normalises texts before it cuts them."""
    return tiny if request.param == "embedded" else chats["instruct"]


def cut(chat: Chat, text: str, chance: random.Random) -> list[int]:
    """`text` in tokens cut at random; tags are single tokens."""
    ids: list[int] = []
    tokens = {chat.tokenizer.token_bytes(i): i for i in range(chat.tokenizer.vocab_size)}
    data = text.encode()
    while data:
        whole = [tag for tag in chat.tokenizer.control if data.startswith(tag.encode())]
        if whole:
            piece = whole[0].encode()
        else:
            piece = chance.choice([data[:n] for n in range(1, 12) if data[:n] in tokens])
            piece = piece.partition(b"<")[0] or piece[:1]
        ids.append(tokens[piece])
        data = data[len(piece) :]
    return ids


def accepts(matcher: Matcher, ids: list[int], eos: int) -> bool:
    try:
        for token in ids:
            matcher.accept(token)
    except ValueError:
        return False
    return bool(matcher.allowed(10**6)[eos])


JSONS = ['{"a":1}', '{"a": [1, 2.5e3,null], "汤": {"x":"\\n\\"}"}}', '{"é":"e\u0301", "": true}']
CALL = '<tool_call>\n{{"name": "get", "arguments": {}}}\n</tool_call>'.format


@pytest.mark.parametrize(
    ("wish", "good", "bad"),
    [
        (
            {"response_format": {"type": "json_object"}},
            JSONS,
            ["[1]", '{"a":1', "{ }", '{"a":  1}', '{"a":1}\n', '{"a":<think>}', ""],
        ),
        ({"schema": {"const": "e\u0301 <"}}, ['"e\u0301 <"'], ['"é <"']),
        ({"structured_outputs": {"regex": "^a/[0-9]+(b|é)$"}}, ["a/12b", "a/0é"], ["a/b", "xa/1b", "a/1bb"]),
        ({"structured_outputs": {"choice": ["yes", 'no "\\\n', "na"]}}, ["yes", 'no "\\\n'], ["n", "yesno"]),
        (
            {"tools": TOOLS, "tool_choice": "required"},
            [CALL('{"city":"x"}'), CALL('{"city": "}}\\n"}')],
            [CALL("{}"), CALL('{"city":"x"}') + "\n" + CALL('{"city":"x"}'), '{"city":"x"}', ""],
        ),
        (
            {"tools": TOOLS, "tool_choice": "required", "parallel": True},
            [CALL('{"city":"x"}') + "\n" + CALL('{"city":"x"}')],
            [CALL('{"city":"x"}') + CALL('{"city":"x"}')],
        ),
        (
            {"tools": TOOLS, "response_format": {"type": "json_object"}},
            [CALL('{"city":"x"}'), '{"a":1}'],
            ['{"a":1}\n' + CALL('{"city":"x"}')],
        ),
    ],
    ids=["object", "const", "regex", "choice", "call", "calls", "either"],
)
def test_what_is_accepted(chat: Chat, wish: dict[str, Any], good: list[str], bad: list[str]) -> None:
    compiled, eos = grammar(chat, **wish), chat.eos_token_ids[0]
    for seed in range(20):
        chance = random.Random(seed)
        for text in good:
            assert accepts(compiled.start(), cut(chat, text, chance), eos), text
        for text in bad:
            assert not accepts(compiled.start(), cut(chat, text, chance), eos), text


def test_the_tokenizers_own_cutting_is_always_allowed(chat: Chat) -> None:
    compiled = grammar(chat, tools=TOOLS, tool_choice="required")
    for text in (CALL('{"city": "Größer, 汤姆"}'), CALL('{"city":"a\\\\"}')):
        matcher = compiled.start()
        for token in chat.tokenizer.encode_trusted(text):
            assert matcher.allowed(10**6)[token], chat.tokenizer.token_bytes(token)
            matcher.accept(token)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("room", [40, 300])
def test_forced_calls_are_read_by_the_parser(chat: Chat, model: str, room: int) -> None:
    schemas = {each["function"]["name"]: each["function"].get("parameters", {}) for each in TOOLS}
    liking = scores(chat, model)
    compiled = grammar(chat, tools=TOOLS, tool_choice="required", parallel=True)
    for seed in range(3):
        ids, ended = draw(chat, compiled.start(), liking, room, seed)
        assert ended
        parser = chat.parser(Prompt((0,)), tools=TOOLS)
        events = [*parser.feed(ids), *parser.finish("stop")]
        assert events[-1] == Finish("tool_calls")
        assert not any(isinstance(event, ContentDelta) for event in events), events
        for event in events[:-1]:
            assert isinstance(event, ToolCallDelta)
            jsonschema.validate(json.loads(event.call.arguments), schemas[event.call.name])


@pytest.mark.parametrize(
    ("wish", "where", "words"),
    [
        ({"schema": {"not": {}, "if": {}}}, "response_format", "not supported: if, not"),
        ({"schema": {"type": "string", "format": "password"}}, "response_format", "format password"),
        (
            {"schema": {"type": "integer", "minimum": 5, "maximum": 3}},
            "response_format",
            "nothing can satisfy",
        ),
        ({"schema": {"type": "thing"}}, "response_format", "thing"),
        ({"schema": {"$ref": "#/$defs/x"}}, "response_format", "does not exist"),
        ({"schema": {"$ref": "#"}}, "response_format", "refers to itself without end"),
        (
            {"schema": {"type": "object", "properties": {"x": {"$ref": "#"}}, "required": ["x"]}},
            "response_format",
            "refers to itself without end",
        ),
        ({"schema": {"type": "string", "pattern": "(?=a)b"}}, "response_format", "look-around"),
        (
            {"schema": {"properties": {"x": {"type": "string", "pattern": "^(a{999}){999}$"}}}},
            "response_format",
            "too large or too complex",
        ),
        ({"schema": {"not": {}, "x-guidance": {"lenient": True}}}, "response_format", "not supported: not"),
        ({"schema": {"enum": ["x" * 2**18]}}, "response_format", "at most 262144"),
        ({"structured_outputs": {"regex": "(a"}}, "structured_outputs", "unclosed group"),
        ({"structured_outputs": {"regex": "a[^\\s\\S]"}}, "structured_outputs", "nothing can satisfy"),
        (
            {
                "tools": [
                    TOOLS[0],
                    {"type": "function", "function": {"name": "g", "parameters": {"contains": 1}}},
                ],
                "tool_choice": "required",
            },
            "tools[1].function.parameters",
            "tools[1].function.parameters: the schema uses what is not supported: contains",
        ),
    ],
)
def test_what_cannot_be_obeyed_is_refused(tiny: Chat, wish: dict[str, Any], where: str, words: str) -> None:
    with pytest.raises(GrammarError) as caught:
        grammar(tiny, **wish)
    assert caught.value.where == where and words in str(caught.value), str(caught.value)
    assert str(caught.value).startswith(where) and "\n" not in str(caught.value)


def test_recursion_that_can_end_is_obeyed(tiny: Chat) -> None:
    tree: dict[str, Any] = {"$ref": "#/$defs/tree"}
    branches = [
        {"type": "object", "properties": {f"op{i}": tree, "x": tree}, "required": [f"op{i}", "x"]}
        for i in range(4)
    ]
    leaf = {"type": "object", "properties": {"leaf": {"type": "integer"}}, "required": ["leaf"]}
    closed = [{**each, "additionalProperties": False} for each in (*branches, leaf)]
    schema = {**tree, "$defs": {"tree": {"anyOf": closed}}}
    compiled = grammar(tiny, schema=schema)
    for seed in range(5):
        ids, ended = draw(tiny, compiled.start(), scores(tiny, "uniform"), 120, seed)
        assert ended
        jsonschema.validate(json.loads(tiny.tokenizer.decode(ids)), schema)


def test_a_partial_message_is_part_of_the_answer(tiny: Chat) -> None:
    def begun(text: str) -> Grammar:
        spec = answer_spec(response_format={"type": "json_object"})
        assert spec is not None
        return tiny.grammar(spec, Prompt((0,), begun=text))

    for prefix in ('{"a', '{"a": "x\\', '{"a": [{"b":1'):
        for room in (12, 100):
            ids, ended = draw(tiny, begun(prefix).start(), scores(tiny, "uniform"), room, room)
            assert ended and json.loads(prefix + tiny.tokenizer.decode(ids))
    with pytest.raises(GrammarError, match="the partial message does not begin an answer") as caught:
        begun("Here: {")
    assert caught.value.where == "messages"


def test_newlines_may_come_between_reasoning_and_answer(tiny: Chat) -> None:
    spec = answer_spec(response_format={"type": "json_object"})
    assert spec is not None
    two, eos = tiny.tokenizer.encode("\n\n"), tiny.eos_token_ids[0]
    one, answer = tiny.tokenizer.encode("\n"), tiny.tokenizer.encode('{"a":1}')
    thinking = tiny.grammar(spec, Prompt((0,), thinking=True))
    assert thinking.start().allowed(10**6)[two].all()
    for lead in ([], one, two, one * 2):
        assert accepts(thinking.start(), lead + answer, eos)
    assert not accepts(thinking.start(), one + two + answer, eos)
    assert not accepts(thinking.start(), answer[:1] + one + answer[1:], eos)
    assert not accepts(tiny.grammar(spec, Prompt((0,))).start(), two + answer, eos)


def test_threads_share_what_is_compiled(tiny: Chat) -> None:
    first = grammar(tiny, schema=CITY)
    assert grammar(tiny, schema=dict(CITY)).core is first.core
    liking = scores(tiny, "uniform")

    def work(seed: int) -> list[int]:
        return draw(tiny, first.start(), liking, 60, seed % 4)[0]

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(work, range(16)))
    assert answers[:4] * 4 == answers


def test_a_model_without_tags_cannot_be_forced(tiny: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    bare = Chat.from_pretrained(locate("tiny-instruct"))
    monkeypatch.delitem(bare.tokenizer.control, "<tool_call>")
    with pytest.raises(GrammarError, match="no tokens for tool calls"):
        grammar(bare, tools=TOOLS, tool_choice="required")
