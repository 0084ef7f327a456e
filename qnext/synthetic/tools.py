"""Tools: conversations in which a function is there to be called, or is there and not needed.

Called by `chat`. Invariant: an argument of a call is always a piece of the user's text, and a prompt with
tools gets a call only if one of its tools fits.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from random import Random
from typing import Any

from qnext.text.messages import Message, Tool

from .coinage import PROPER, draw_open
from .dialogue import Dialogue, Setting, assistant, user
from .slots import fill, first_upper, listing, pick, request, table, vary, words

Schema = dict[str, Any]  # one entry of tools.toml

_WEATHER = "get_weather"
# Tools that could answer almost anything: never shown beside a question that is answered in words.
_HANDY = frozenset(
    "web_search calculator translate_text define_word get_recipe get_news random_number find_place "
    "get_population convert_units save_note recommend_movie order_food".split()
)

# Tools of one line could answer the same request, so they are never shown as each other's decoys.
_GROUPS = (
    "weather forecast",
    "search news recipe place product movie book define",
    "reminder alarm timer todo event calendar note",
    "email message call",
    "convert exchange calculator",
    "play",
    "turn set_",
    "order package",
    "random roll",
)


def make(rng: Random, setting: Setting) -> Dialogue:
    """A request that needs one of the tools: a call, two, one with its result, or a question back."""
    schema = invented(rng) if rng.random() < 0.2 else taught(rng)
    luck = rng.random()
    if luck < 0.08 and "bare" in schema:
        return _missing(rng, schema, setting)
    if luck < 0.13 and len(schema["parameters"]) == 1:
        return parallel(rng, schema, setting)
    if luck < 0.2 and "result" in schema:
        return _again(rng, schema, setting)
    if luck < 0.6 or "result" not in schema:
        return requested(rng, schema, setting)
    question, arguments = utterance(rng, schema, setting)
    call, tools = _call(rng, schema, arguments), toolbox(rng, schema, setting)
    return Dialogue((user(question), call, *_result(rng, schema, arguments)), tools)


def requested(rng: Random, schema: Schema, setting: Setting) -> Dialogue:
    """A request for one tool, and its call."""
    question, arguments = utterance(rng, schema, setting)
    call = _call(rng, schema, arguments)
    return Dialogue((user(question), call), toolbox(rng, schema, setting), checkable=True)


def without_fit(rng: Random, setting: Setting) -> Dialogue:
    """A request for a tool that is not there: the honest answer, no call."""
    schema = taught(rng)
    question, _ = utterance(rng, schema, setting)
    tools = [taught(rng) for _ in range(rng.randint(1, 3))]
    kept = [tool for tool in tools if _kind(tool) != _kind(schema)] or [_by_name("roll_dice")]
    answer = rng.choice(
        ("I am sorry, I have no tool for that.", "Sorry, none of my tools can do that.",
         "I cannot do that here. I have no tool for it.", "I am sorry, but I do not have a tool for this.")
    )  # fmt: skip
    names = listing([tool["name"] for tool in kept])
    wish = schema["description"].lower()
    thought = f"The user wants this: {wish}. I only have {names}. That does not fit, so I say so."
    definitions = tuple(definition(rng, tool) for tool in kept)
    return Dialogue((user(question), assistant(answer, thought)), definitions, checkable=True)


def attach(rng: Random, dialogue: Dialogue) -> Dialogue:
    """The same dialogue with tools beside it that it does not need."""
    drawn = [taught(rng) for _ in range(rng.choice((1, 1, 1, 2, 2, 3)))]
    shown = {tool["name"]: tool for tool in drawn if tool["name"] not in _HANDY} or {
        _WEATHER: _by_name(_WEATHER)
    }
    definitions = tuple(definition(rng, tool) for tool in shown.values())
    names = listing(list(shown))
    messages = [
        Message(m.role, m.content, f"{_not_needed(rng, names)} {m.reasoning}") if m.role == "assistant" else m
        for m in dialogue.messages
    ]
    return Dialogue(tuple(messages), definitions, dialogue.must, checkable=dialogue.checkable)


def _not_needed(rng: Random, names: str) -> str:
    return rng.choice(
        ("I do not need a tool for this.", f"This has nothing to do with {names}.", "No tool is needed.")
    )


def taught(rng: Random) -> Schema:
    """A tool of tools.toml, get_weather far more often than the rest."""
    return _by_name(_WEATHER) if rng.random() < 0.25 else rng.choice(table("tools")["tool"])


def toolbox(rng: Random, schema: Schema, setting: Setting) -> tuple[Tool, ...]:
    """The definitions shown beside a request: the one that fits among none to three others, shuffled."""
    tools = {schema["name"]: definition(rng, schema)}
    for _ in range(rng.choice((0, 0, 0, 1, 1, 2, 3))):
        other = taught(rng)
        if _kind(other) != _kind(schema):
            tools[other["name"]] = definition(rng, other)
    shown = list(tools.values())
    rng.shuffle(shown)
    return tuple(shown)


def definition(rng: Random, schema: Schema) -> Tool:
    """The tool in OpenAI's shape; `required` and descriptions of parameters come and go."""
    slots = {name: kind.split() for name, kind in schema["parameters"].items()}
    properties: dict[str, dict[str, str]] = {
        name: {"type": kind[0].rstrip("?")} for name, kind in slots.items()
    }
    parameters: dict[str, Any] = {"type": "object", "properties": properties}
    if rng.random() < 0.2:
        for name, value in properties.items():
            value["description"] = f"The {name.replace('_', ' ')}"
    if rng.random() < 0.4:
        parameters["required"] = [name for name, kind in slots.items() if not kind[0].endswith("?")]
    description = schema["description"] + ("." if rng.random() < 0.1 else "")
    function = {"name": schema["name"], "description": description, "parameters": parameters}
    return {"type": "function", "function": function}


def utterance(rng: Random, schema: Schema, setting: Setting) -> tuple[str, dict[str, str]]:
    """What a user says for this tool, and the arguments it holds, as text."""
    arguments: dict[str, str] = {}
    for name, kind in schema["parameters"].items():
        arguments[name] = _argument(rng, kind.split()[1], arguments, setting)
    full = "more" in schema and rng.random() < 0.5
    if full or ("do" in schema and rng.random() < 0.5):
        template = pick(rng, schema["more" if full else "do"], setting.heldout)
        text = request(rng, fill(rng, template, arguments))
    else:
        template = pick(rng, schema["ask"], setting.heldout, schema.get("told", ()))
        text = vary(rng, first_upper(fill(rng, template, arguments)))
    if not full:
        arguments = {n: v for n, v in arguments.items() if "?" not in schema["parameters"][n]}
    return text, _as_typed(text, arguments)


def _as_typed(text: str, arguments: dict[str, str]) -> dict[str, str]:
    """People type in lower case at times: then the argument is what they typed."""
    lowered = {n: v if v in text else v.lower() for n, v in arguments.items()}
    return {n: v if v in text else arguments[n] for n, v in lowered.items()}


def typed(schema: Schema, arguments: dict[str, str]) -> dict[str, Any]:
    """The arguments as JSON values: numbers where the schema says number or integer."""
    kinds = schema["parameters"]
    return {
        n: int(v) if kinds[n].startswith(("number", "integer")) else _proper(v, kinds[n].split()[1])
        for n, v in arguments.items()
    }


def _proper(value: str, slot: str = "") -> str:
    """Cities and names get their capitals back."""
    known = _proper_nouns().get(value)
    return known or (value.title() if slot in PROPER and value == value.lower() else value)


def _proper_nouns() -> dict[str, str]:
    return {w.lower(): w for slot in ("city", "name", "country", "language", "company") for w in words(slot)}


def invented(rng: Random, counts: Sequence[int] = (1, 1, 2)) -> Schema:
    """A tool that exists nowhere: a verb, a noun and one of `counts` parameters."""
    made = table("invented")
    verb, noun = rng.choice(made["verbs"].split(", ")), rng.choice(made["nouns"].split(", "))
    if rng.random() < 0.4:
        noun = "".join(rng.choice(made["syllables"].split(", ")) for _ in range(rng.randint(2, 3)))
    parts = rng.sample(sorted(made["parts"].items()), rng.choice(counts))
    tail = " ".join(phrase for _, (_, phrase) in parts)
    return {
        "name": f"{verb}_{noun.replace(' ', '_')}",
        "description": f"{first_upper(verb)} the {noun}",
        "parameters": {name: kind for name, (kind, _) in parts},
        "do": [f"{verb} the {noun} {tail}", f"{verb} a {noun} {tail}"],
        "ask": [f"I need to {verb} the {noun} {tail}.", f"Can we {verb} the {noun} {tail}?"],
    }


def _argument(rng: Random, slot: str, before: dict[str, str], setting: Setting) -> str:
    if slot in ("unit_from", "unit_to"):
        pairs = [pair.split("|") for pair in words("unit_pair")]
        wanted = [pair for pair in pairs if pair[0] == before.get("from_unit")] or pairs
        return rng.choice(wanted)[slot == "unit_to"]
    tried = [draw_open(rng, slot, setting.heldout, setting.stories) for _ in range(8)]
    return next((value for value in tried if value not in before.values()), tried[0])  # a split may leave one


def _again(rng: Random, schema: Schema, setting: Setting) -> Dialogue:
    """A call with its result, and then the same question about something else."""
    question, arguments = utterance(rng, schema, setting)
    call = _call(rng, schema, arguments)
    turns = (user(question), call, *_result(rng, schema, arguments))
    next_question, changed = utterance(rng, schema, setting)
    if len(schema["parameters"]) == 1:
        ((name, kind),) = schema["parameters"].items()
        value = _argument(rng, kind.split()[1], arguments, setting)
        forms = (
            ("And in {}?", "What about {}?", "And {}?", "How about {}?")
            if name == "city"
            else ("And {}?", "What about {}?")
        )
        next_question, changed = rng.choice(forms).format(value), {name: value}
    thought = f"Now the user asks again. {_thought(rng, schema, changed)}"
    last = assistant("", thought, (schema["name"], typed(schema, changed)))
    return Dialogue((*turns, user(next_question), last), toolbox(rng, schema, setting), checkable=True)


def _missing(rng: Random, schema: Schema, setting: Setting) -> Dialogue:
    """The request lacks its argument: ask back; half of the time the user gives it and the call follows."""
    question = vary(rng, pick(rng, schema["bare"]))
    first = next(iter(schema["parameters"])).replace("_", " ")
    thought = f"The user wants to use {schema['name']}, but did not give the {first}. I have to ask for it."
    turns: tuple[Message, ...] = (user(question), assistant(schema["missing"], thought))
    tools = toolbox(rng, schema, setting)
    if rng.random() < 0.5 or len(schema["parameters"]) > 1:
        return Dialogue(turns, tools, checkable=True)
    ((name, kind),) = schema["parameters"].items()
    value = draw_open(rng, kind.split()[1], setting.heldout, setting.stories)
    reply = rng.choice(("{}", "{}.", "{}, please.", "In this case {}.", "I mean {}.", "Take {}.")).format(
        value
    )
    thought = f"Now I know the {first}: {value}. I call {schema['name']}."
    call = assistant("", thought, (schema["name"], typed(schema, {name: value})))
    return Dialogue((*turns, user(reply), call), tools, checkable=True)


def parallel(rng: Random, schema: Schema, setting: Setting) -> Dialogue:
    """The same question about two things: two calls."""
    ((name, kind),) = schema["parameters"].items()
    slot = kind.split()[1]
    first = draw_open(rng, slot, setting.heldout, setting.stories)
    second = _argument(rng, slot, {name: first}, setting)
    template = pick(rng, schema["do"], setting.heldout)
    question = request(rng, fill(rng, template, {name: f"{first} and {second}"}))
    pair = [typed(schema, _as_typed(question, {name: value})) for value in (first, second)]
    thought = f"The user asks for two things: {first} and {second}. I call {schema['name']} twice."
    call = assistant("", thought, *((schema["name"], arguments) for arguments in pair))
    return Dialogue((user(question), call), toolbox(rng, schema, setting), checkable=True)


def _result(rng: Random, schema: Schema, arguments: dict[str, str]) -> tuple[Message, Message]:
    """The tool's answer and the sentence made of it."""
    values: dict[str, Any] = {k: _proper(v) for k, v in arguments.items()}
    if schema["name"] == "calculator":
        left, operator, right = arguments["expression"].split()
        numbers = {"+": int(left) + int(right), "-": int(left) - int(right), "*": int(left) * int(right)}
        values["value"] = numbers.get(operator, round(int(left) / int(right), 2))
    text = fill(rng, schema["result"], values)
    values |= {k: v[0] if isinstance(v, list) else v for k, v in json.loads(text).items()}
    values |= {"event": values.get("events", ""), "film": values.get("movie", "")}
    sentence = fill(rng, rng.choice(schema["answer"]), values)
    thought = rng.choice(
        ("The tool gave me what I need. I tell the user.", "I have the result. I say it in a sentence.",
         "The result is here, so I can answer now.")
    )  # fmt: skip
    return Message("tool", text, tool_call_id="call_0"), assistant(sentence, thought)


def _call(rng: Random, schema: Schema, arguments: dict[str, str]) -> Message:
    return assistant("", _thought(rng, schema, arguments), (schema["name"], typed(schema, arguments)))


def _thought(rng: Random, schema: Schema, arguments: dict[str, str]) -> str:
    given = listing([f"{name.replace('_', ' ')} is {value}" for name, value in arguments.items()])
    return rng.choice(
        (f"The user needs {schema['name']}. The {given}. I call the tool.",
         f"This is a job for {schema['name']}. The {given}.",
         f"I have a tool that fits: {schema['name']}. The {given}.")
    )  # fmt: skip


def _by_name(name: str) -> Schema:
    return next(tool for tool in table("tools")["tool"] if tool["name"] == name)


def _kind(schema: Schema) -> str:
    """The group of a tool, or its name when it is alone."""
    for group in _GROUPS:
        if any(part in schema["name"] for part in group.split()):
            return group
    return str(schema["name"])
