"""The compiler of grammars: from a `GrammarSpec` to a grammar that the engine can follow, token by token.

Made by `chat`, called by the threads that encode prompts. Invariant: a grammar that is compiled can be obeyed
and is never changed, so threads share it; control tokens stand in it only as the tags of calls.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from llguidance import LLMatcher, LLParserLimits, regex_to_lark

from .closing import TooComplex, closing, nests_without_end
from .grammar import GrammarError, GrammarSpec, TextForm
from .lexicon import OUTSIDE, TEXT, Lexicon, after
from .matcher import Matcher, Place
from .tokenizer import Tokenizer

_KEPT = 64  # compiled grammars, a few hundred KiB each
_LARGEST = 2**18  # characters of a schema
_TASTES = 32
_RESERVE = (16, 128)  # tokens
_ENDLESS = "nothing can satisfy it: it refers to itself without end, or excludes everything"
# At most one space, where people put one: a weak model could go on with white space for ever.
_POSITION = re.compile(r"^at \d+\(\d+\): ")
_STYLE: dict[str, object] = {
    "whitespace_flexible": False,
    "item_separator": ", ?",
    "key_separator": ": ?",
    "lenient": False,
}


@dataclass(frozen=True)
class Grammar:
    """A compiled grammar. `core` is copied, never moved; `place` is where an answer begins; `way` is a short
    answer, found with this `taste`."""

    lexicon: Lexicon
    core: LLMatcher
    place: Place
    reserve: int
    taste: np.ndarray
    way: tuple[int, ...] | None

    def start(self) -> Matcher:
        """A matcher at the beginning of an answer."""
        far = self.reserve + len(self.way or ())
        return Matcher(self.lexicon, self.core.deep_copy(), self.place, self.reserve, far, self.taste)


class Grammars:
    """The grammars of one tokenizer, those used last kept. Safe from several threads."""

    def __init__(self, tokenizer: Tokenizer, eos: Sequence[int]) -> None:
        self._lexicon = Lexicon(tokenizer, eos)
        self._tags = tuple(tokenizer.control.get(tag) for tag in ("<tool_call>", "</tool_call>"))
        self._compiled = lru_cache(_KEPT)(self._compile)

    def compile(self, spec: GrammarSpec, *, begun: str = "", lead: int = 0) -> Grammar:
        """The grammar of an answer whose text has `begun` already, and before which `lead` newlines may come.
        Raises GrammarError."""
        grammar = self._compiled(spec)
        if not begun or spec.text is None:
            return replace(grammar, place=replace(grammar.place, lead=lead))
        core, ids = grammar.core.deep_copy(), self._lexicon.encode(begun)
        if core.validate_tokens(ids) != len(ids) or not core.consume_tokens(ids):
            words = "does not begin an answer of the form asked for (JSON has no line breaks or indentation)"
            raise GrammarError("messages", f"the partial message {words}")
        state, opened = after(grammar.place.state, begun.encode())
        return replace(grammar, core=core, place=Place(state=state, depth=opened))

    def _compile(self, spec: GrammarSpec) -> Grammar:
        rules, parts = _rules(spec, self._tags)
        for schema, where in parts.values():
            self._core([{"json_schema": schema}], where, OUTSIDE)
            for pattern in _patterns(schema):  # also those that the shortest answer does not meet
                self._core([{"json_schema": {"type": "string", "pattern": pattern}}], where, OUTSIDE)
        whole: list[dict[str, object]] = [{"lark_grammar": rules}]
        whole += [{"name": name, "json_schema": schema} for name, (schema, _) in parts.items()]
        where = spec.text.where if spec.text else "tool_choice"
        state = TEXT if spec.text and spec.text.form != "schema" else OUTSIDE
        core, taste, way = self._core(whole, where, state)
        size = sum(len(call.name) + len(call.parameters) for call in spec.calls)
        size += len(spec.text.source) if spec.text else 0
        reserve = max(_RESERVE[0], min(size // 6, _RESERVE[1]))  # more than what a single token can open
        return Grammar(self._lexicon, core, Place(state=state), reserve, taste, way)

    def _core(
        self, grammars: list[dict[str, object]], where: str, state: int
    ) -> tuple[LLMatcher, np.ndarray, tuple[int, ...] | None]:
        """A matcher for a grammar in llguidance's own form, a taste, and the way through that it finds."""
        limits = LLParserLimits(verbose_errors=False)
        core = LLMatcher(self._lexicon.core, json.dumps({"grammars": grammars}), log_level=0, limits=limits)
        try:
            if core.is_error():
                raise TooComplex(core.get_error())
            taste = self._lexicon.lengths  # the longest token is the fewest tokens, as a rule
            way = closing(self._lexicon, core, state, 2**31, taste)
            if way is not None or not nests_without_end(self._lexicon, core):
                return core, taste, way
            # It prefers what goes on for ever: other tastes, drawn by lot, may prefer what ends.
            for seed in range(_TASTES):
                taste = np.random.default_rng(seed).permutation(self._lexicon.size)
                way = closing(self._lexicon, core, state, 2**31, taste, careful=False)
                if way is not None:
                    return core, taste, way
            raise TooComplex(_ENDLESS)
        except TooComplex as error:
            raise GrammarError(where, f"{where}: {_plain_words(str(error))}") from None


def _rules(spec: GrammarSpec, tags: tuple[int | None, ...]) -> tuple[str, dict[str, tuple[object, str]]]:
    """The grammar in llguidance's Lark, and the schemas it refers to with where they came from."""
    parts: dict[str, tuple[object, str]] = {}
    starts, lines = [], []
    if spec.text is not None:
        starts.append("text")
        lines.append(f"text: {_text_rule(spec.text, parts)}")
    if spec.calls:
        if None in tags:
            raise GrammarError("tool_choice", "tool_choice: this model has no tokens for tool calls")
        starts.append("calls")
        names = []
        for i, call in enumerate(spec.calls):
            names.append(f"call_{i}")
            parts[f"arguments_{i}"] = (_schema(call.parameters, call.where), call.where)
            opening = f'{{"name": {json.dumps(call.name, ensure_ascii=False)}, "arguments": '
            lines.append(f'call_{i}: {_literal(opening)} @arguments_{i} "}}"')
        lines.append('calls: call ("\\n" call)*' if spec.many else "calls: call")
        lines.append(f'call: <[{tags[0]}]> "\\n" ({" | ".join(names)}) "\\n" <[{tags[1]}]>')
    return "\n".join([f"start: {' | '.join(starts)}", *lines]), parts


def _text_rule(text: TextForm, parts: dict[str, tuple[object, str]]) -> str:
    if text.form == "schema":
        parts["schema"] = (_schema(text.source, text.where), text.where)
        return "@schema"
    if text.form == "regex":
        return f"/{regex_to_lark(text.source)}/"
    return " | ".join(map(_literal, json.loads(text.source)))


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _schema(source: str, where: str) -> object:
    if len(source) > _LARGEST:
        raise GrammarError(where, f"{where}: the schema has {len(source)} characters: at most {_LARGEST}")
    return {**json.loads(source), "x-guidance": _STYLE}


def _patterns(schema: object) -> Iterator[str]:
    if isinstance(schema, Mapping):
        if isinstance(schema.get("pattern"), str):
            yield schema["pattern"]
        for value in schema.values():
            yield from _patterns(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from _patterns(value)


def _plain_words(error: str) -> str:
    """llguidance's message in words for who wrote the schema."""
    line, _, rest = error.partition("\n")
    if line.startswith("Unimplemented keys: "):
        keywords = ", ".join(json.loads(line.removeprefix("Unimplemented keys: ")))
        return f"the schema uses what is not supported: {keywords}"
    if line.startswith("Unknown format: "):
        return f"the format {line.removeprefix('Unknown format: ')} is not supported: leave it out"
    if line.startswith("Unsatisfiable schema: "):
        return f"nothing can satisfy the schema: {line.removeprefix('Unsatisfiable schema: ')}"
    if line.startswith("NoExtension"):
        return _ENDLESS
    if any(word in line for word in ("too large", "too many", "fuel", "Current row has", "limit")):
        return f"it is too large or too complex, simplify it ({line})"
    causes = [each.removeprefix("error: ") for each in rest.splitlines() if each.startswith("error: ")]
    return causes[0] if causes else _POSITION.sub("", line)
