"""Parameters off the wire: ranges, types and refusals in the contract's words, the same in every dialect.

Called by `dashscope`, `openai` and `openai_completions`. Invariants: the same parameters give the same
`ChatRequest` in either protocol, so that the same seed gives the same text; a boolean or a numeric string is
never a number; what is unknown is ignored, and what is null is absent (but for `top_k`).
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Mapping
from typing import Any

from qnext.engine.request import MAX_SEED, SamplingParams
from qnext.text.grammar import GrammarError, GrammarSpec, answer_spec

from .errors import invalid
from .exchange import ChatRequest, Conversation, Prompt, Rules

Params = Mapping[str, Any]
MAX_STOPS = 16
MAX_PRIORITY = 2**31
MAX_CONTEXT = 2**31
_Ids = tuple[int, ...]
_TOOL_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_NO_JSON = (
    "'messages' must contain the word 'json' in some form, to use 'response_format' of type 'json_object'."
)


def number(params: Params, name: str, allowed: Callable[[float], bool], message: str) -> float | None:
    value = params.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise invalid(f"'{name}' must be Float", name)
    if not (allowed(value) and abs(value) < 1e300):
        raise invalid(message, name)
    return float(value)


def integer(params: Params, name: str, low: int, high: int, message: str) -> int | None:
    value = params.get(name)
    if value is None:
        return None
    if isinstance(value, float) and value.is_integer():  # some languages write no other numbers
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise invalid(f"'{name}' must be Integer", name)
    if not low <= value <= high:
        raise invalid(message, name)
    return value


def span(params: Params, name: str, low: int, high: int) -> int | None:
    return integer(params, name, low, high, f"Range of {name} should be [{low}, {high}]")


def flag(params: Params, name: str) -> bool | None:
    value = params.get(name)
    if value is not None and not isinstance(value, bool):
        raise invalid(f"'{name}' must be Boolean", name)
    return value


def chat_request(
    model: str,
    prompts: tuple[Prompt, ...],
    params: Params,
    rules: Rules,
    *,
    stream: bool,
    logprobs: int | None,
) -> ChatRequest:
    """What all dialects share: sampling, stops, tools, thinking, the form of the answer, `priority` (lower
    goes first), `max_context_length`, `return_facts`, `return_routed_experts`. `logprobs` is None or a number
    of alternatives."""
    _thinking(params, rules, stream)
    tools, parallel = tools_on_offer(params), bool(flag(params, "parallel_tool_calls"))
    grammar = _grammar(params, prompts, tools, parallel)
    stops, stop_ids, stop_sequences = _stops(params, rules)
    n = span(params, "n", 1, 4) or 1
    numbers: dict[str, Any] = {**rules.defaults, **_sampling(params), **_lengths(params, rules)}
    sampling = SamplingParams(
        **numbers,
        seed=_seed(params),
        stop=stops,
        stop_token_ids=stop_ids,
        logprobs=logprobs,
        n=1 if tools else n,
    )
    return ChatRequest(
        model,
        prompts,
        sampling,
        stream,
        stop_sequences,
        tools,
        max_calls=None if parallel else 1,
        grammar=grammar,
        priority=span(params, "priority", -MAX_PRIORITY, MAX_PRIORITY) or 0,
        max_context=span(params, "max_context_length", 1, MAX_CONTEXT),
        facts=bool(flag(params, "return_facts")),
        routed_experts=bool(flag(params, "return_routed_experts")),
    )


def logprobs_asked(params: Params) -> int | None:
    """The boolean `logprobs` of chats, and `top_logprobs`."""
    wanted, top = flag(params, "logprobs"), span(params, "top_logprobs", 0, 5)
    if top and not wanted:
        raise invalid("top_logprobs is possible only when logprobs is true", "top_logprobs")
    return (top or 0) if wanted else None


def _sampling(params: Params) -> dict[str, float]:
    penalties = "{} should be in [-2.0, 2.0]"
    found = {
        "temperature": number(
            params, "temperature", lambda v: 0 <= v < 2, "Temperature should be in [0.0, 2.0)"
        ),
        "top_p": number(params, "top_p", lambda v: 0 < v <= 1, "Range of top_p should be (0.0, 1.0]"),
        "min_p": number(params, "min_p", lambda v: 0 <= v <= 1, "Range of min_p should be [0.0, 1.0]"),
        "repetition_penalty": number(
            params, "repetition_penalty", lambda v: v > 0, "Repetition_penalty should be greater than 0.0"
        ),
        "presence_penalty": number(
            params, "presence_penalty", lambda v: -2 <= v <= 2, penalties.format("Presence_penalty")
        ),
        "frequency_penalty": number(
            params, "frequency_penalty", lambda v: -2 <= v <= 2, penalties.format("Frequency_penalty")
        ),
    }
    given = {name: value for name, value in found.items() if value is not None}
    unbounded = 10**1000
    top_k = integer(params, "top_k", 0, unbounded, "Parameter top_k be greater than or equal to 0")
    if top_k is not None:
        given["top_k"] = top_k if top_k <= 100 else 0
    elif "top_k" in params:  # spelled out, null means off
        given["top_k"] = 0
    return given


def _lengths(params: Params, rules: Rules) -> dict[str, int | None]:
    whole = rules.max_output + (rules.max_thinking if rules.thinking else 0)
    limit, far = rules.max_thinking, 10**1000
    words = f"The thinking_budget parameter must be a positive integer and not greater than {limit}"
    # Models that do not think ignore it, whatever integer it is.
    budget = integer(params, "thinking_budget", *((1, limit) if rules.thinking else (-far, far)), words)
    return {
        "max_tokens": span(params, "max_tokens", 1, rules.max_output),
        "max_total_tokens": span(params, "max_completion_tokens", 1, whole),
        "thinking_budget": budget if rules.thinking else None,
    }


def _seed(params: Params) -> int:
    seed = span(params, "seed", 0, MAX_SEED)
    return secrets.randbelow(2**31) if seed is None else seed


def _stops(params: Params, rules: Rules) -> tuple[tuple[str, ...], _Ids, tuple[_Ids, ...]]:
    """Stop texts, single stop ids, and stop sequences of several ids; never texts and ids together."""
    raw = params.get("stop")
    if raw is None:
        return (), (), ()
    stops = raw if isinstance(raw, list) else [raw]
    if len(stops) > MAX_STOPS:
        raise invalid(f"Range of stop should be [0, {MAX_STOPS}] items", "stop")
    if all(isinstance(stop, str) for stop in stops):
        return tuple(stop for stop in stops if stop), (), ()
    sequences = [stop if isinstance(stop, list) else [stop] for stop in stops]
    if isinstance(raw, list) and all(token_ids(sequence, rules) for sequence in sequences):
        single = tuple(sequence[0] for sequence in sequences if len(sequence) == 1)
        return (), single, tuple(tuple(sequence) for sequence in sequences if len(sequence) > 1)
    words = "a string, a list of strings, or a list of token ids or of lists of token ids, not mixed"
    raise invalid(f"'stop' must be {words}", "stop")


def token_ids(value: Any, rules: Rules) -> bool:
    """Whether `value` is a list of ids of the model's vocabulary, not empty."""
    if not isinstance(value, list) or not value:
        return False
    return all(type(token) is int and 0 <= token < rules.vocab_size for token in value)


def _thinking(params: Params, rules: Rules, stream: bool) -> None:
    """A thinking model always thinks; other models ignore the wish, which several front ends always send."""
    wanted = flag(params, "enable_thinking")
    if not rules.thinking:
        return
    if wanted is False:
        raise invalid("The value of the enable_thinking parameter is restricted to True.", "enable_thinking")
    if not stream and not rules.thinking_non_stream:
        words = "This model only support stream mode, please enable the stream parameter to access the model."
        raise invalid(words, "stream")


def _grammar(
    params: Params, prompts: tuple[Prompt, ...], tools: tuple[dict[str, Any], ...], parallel: bool
) -> GrammarSpec | None:
    """`response_format`, a forced `tool_choice`, and vLLM's `structured_outputs`: an object with one of
    `json` (a JSON schema), `json_object`, `regex` and `choice` (a list of texts)."""
    wanted = params.get("response_format")
    if isinstance(wanted, Mapping) and wanted.get("type") == "json_object":
        for prompt in prompts:
            texts = [m.content for m in prompt.messages] if isinstance(prompt, Conversation) else ["json"]
            if not any("json" in text.lower() for text in texts):
                raise invalid(_NO_JSON, "messages")
    try:
        return answer_spec(
            response_format=wanted,
            structured_outputs=params.get("structured_outputs"),
            tools=tools,
            tool_choice=params.get("tool_choice"),
            parallel=parallel,
        )
    except GrammarError as error:
        raise invalid(str(error), error.where) from None


def tools_on_offer(params: Params) -> tuple[dict[str, Any], ...]:
    """The tools on offer: none when `tool_choice` is "none"."""
    tools = params.get("tools")
    if tools is None:
        return ()
    if not isinstance(tools, list):
        raise invalid("'tools' must be a list of tools", "tools")
    for i, tool in enumerate(tools):
        function = tool.get("function") if isinstance(tool, Mapping) else None
        if not isinstance(function, Mapping) or tool.get("type", "function") != "function":
            words = '{"type": "function", "function": {"name", "description", "parameters"}}'
            raise invalid(f"tools[{i}] must be {words}", f"tools[{i}]")
        name = function.get("name")
        if not isinstance(name, str) or not _TOOL_NAME.fullmatch(name):
            raise invalid(f"tools[{i}].function.name must be 1 to 64 of [A-Za-z0-9_-]", f"tools[{i}]")
        if not isinstance(function.get("description", ""), str | None):
            raise invalid(f"tools[{i}].function.description must be a text", f"tools[{i}]")
        if not isinstance(function.get("parameters", {}), Mapping | None):
            raise invalid(f"tools[{i}].function.parameters must be a JSON schema, an object", f"tools[{i}]")
    return () if params.get("tool_choice") == "none" else tuple(tools)
