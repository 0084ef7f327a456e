"""The native DashScope dialect: a body to a `ChatRequest`, an answer or its events to native bytes.

Called by `app`. Invariant: pure functions and frozen values, no I/O; a success body has neither `code` nor
`message`, and `finish_reason` is the text "null" until a choice ends.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from . import conversation
from .errors import ApiError, bad_body, invalid, native_body
from .exchange import (
    Alternative,
    Answer,
    ChatEvent,
    ChatRequest,
    Choice,
    Conversation,
    Logprob,
    Prompt,
    Rules,
    Usage,
)
from .facts import written
from .sse import native_frame
from .validation import Params, chat_request, flag, logprobs_asked

NO_MODEL = 'Required parameter "model" missing from request.'
MAX_PROMPTS = 10
_NO_INPUT = 'Either "prompt" or "messages" must exist and cannot both be none'
_ONLY = 'The {} parameter must be "{}" when enable_thinking is true'


def parse(
    body: Mapping[str, Any], rules: Rules, *, stream: bool, request_id: str
) -> tuple[ChatRequest, NativeReply]:
    """Read a generation body; `stream` comes from the headers. Raises ApiError."""
    given = body.get("parameters")
    params: Params = {} if given is None else given
    if not isinstance(params, Mapping):
        raise bad_body()
    prompts = read_input(body.get("input"), rules)
    asked = chat_request(
        body["model"], prompts, params, rules, stream=stream, logprobs=logprobs_asked(params)
    )
    reply = NativeReply(
        request_id,
        text=_text_format(params, rules),
        incremental=_incremental(params, rules, stream),
        thinking=rules.thinking,
        many=len(prompts) * asked.sampling.n > 1,
    )
    return asked, reply


def read_input(raw: Any, rules: Rules) -> tuple[Prompt, ...]:
    """`input`: messages, a prompt, both (the prompt is the last turn), a history, or 1 to 10 prompts at
    once."""
    if raw is None:
        raise invalid(_NO_INPUT, "input")
    if not isinstance(raw, Mapping):
        raise bad_body()
    prompt, messages, history = raw.get("prompt"), raw.get("messages"), raw.get("history")
    if history and prompt is not None:
        messages = conversation.history(history, prompt)
    elif prompt is not None and isinstance(messages, list):
        messages = [*messages, {"role": "user", "content": prompt}]
    if messages is not None:
        return (conversation.conversation(messages, rules),)
    if prompt is None:
        raise invalid(_NO_INPUT, "prompt")
    prompts = prompt if isinstance(prompt, list) else [prompt]
    if not all(isinstance(each, str) for each in prompts):
        raise invalid("input content must be a string.", "prompt")
    if not 1 <= len(prompts) <= MAX_PROMPTS:
        raise invalid(f"Range of prompt should be [1, {MAX_PROMPTS}] texts", "prompt")
    return tuple(conversation.from_prompt(each) if rules.template else each for each in prompts)


def parse_tokenizer(body: Mapping[str, Any], rules: Rules) -> Prompt:
    """Read a tokenizer body: a prompt is text, whatever the model; messages go through the template."""
    prompts = read_input(body.get("input"), rules)
    match prompts[0]:
        case Conversation(messages) if body["input"].get("messages") is None and len(messages) == 1:
            return messages[0].content
        case prompt:
            return prompt


def _text_format(params: Params, rules: Rules) -> bool:
    """Whether `output.text` is wanted rather than `output.choices`."""
    wanted, tools = params.get("result_format"), bool(params.get("tools"))
    if wanted not in (None, "text", "message"):
        raise invalid('result_format must be "text" or "message"', "result_format")
    if wanted == "text" and rules.thinking:
        raise invalid(_ONLY.format("result_format", "message"), "result_format")
    if wanted == "text" and tools:
        raise invalid('The result_format parameter must be "message" when tools are given', "result_format")
    return not tools and not rules.thinking if wanted is None else wanted == "text"


def _incremental(params: Params, rules: Rules, stream: bool) -> bool:
    wanted = flag(params, "incremental_output")
    if wanted and not stream:
        raise invalid("parameter incremental_output only support stream call", "incremental_output")
    if wanted is False and stream and rules.thinking:
        raise invalid(_ONLY.format("incremental_output", "true"), "incremental_output")
    return rules.thinking if wanted is None else wanted


@dataclass(frozen=True)
class NativeReply:
    """`text`: the text format. `incremental`: frames hold the new piece, not all so far (and in the text
    format once more as `text_delta`, which tutorials read). `thinking`: the key
    `reasoning_content` is always there. `many`: several choices, which only the message format can tell
    apart."""

    request_id: str
    text: bool = False
    incremental: bool = True
    thinking: bool = False
    many: bool = False

    def body(self, answer: Answer) -> dict[str, Any]:
        choices = answer.ordered()
        first = choices[0][1]
        output: dict[str, Any] = {}
        if self.text:
            output = {"finish_reason": first.finish, "text": first.content, **written(first.facts)}
        if self.many or not self.text:
            output["choices"] = [self._choice(index, choice) for index, choice in choices]
        return self._envelope(output, answer.usage)

    def frames(self, event: ChatEvent, answer: Answer) -> bytes:
        choice = answer.choices[event.index]
        new = _piece(event, choice) if self.incremental else choice
        if self.text and not self.many:
            output: dict[str, Any] = {"text": new.content, "finish_reason": new.finish or "null"}
            output |= written(new.facts)
            if self.incremental:
                output["text_delta"] = new.content
        else:
            output = {"choices": [self._choice(event.index, new, len(choice.calls) - len(new.calls))]}
        return native_frame(answer.events, self._envelope(output, event.share if self.many else event.usage))

    def end(self, answer: Answer) -> bytes:
        """Nothing: a native stream ends with its last frame."""
        return b""

    def failure(self, error: ApiError, answer: Answer) -> bytes:
        return native_frame(answer.events + 1, native_body(error, self.request_id), error.status)

    def _choice(self, index: int, choice: Choice, first_call: int = 0) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": choice.content}
        if self.thinking or choice.reasoning:
            message["reasoning_content"] = choice.reasoning
        if choice.calls:
            message["tool_calls"] = tool_calls(choice, first_call)
        told: dict[str, Any] = {
            "index": index,
            "finish_reason": choice.finish or "null",
            "message": message,
        }
        if choice.logprobs:
            told["logprobs"] = logprobs(choice.logprobs)
        return told | written(choice.facts)

    def _envelope(self, output: dict[str, Any], usage: Usage) -> dict[str, Any]:
        counts: dict[str, Any] = {
            "input_tokens": usage.input,
            "output_tokens": usage.output,
            "total_tokens": usage.total,
            "prompt_tokens_details": {"cached_tokens": usage.cached},
        }
        if not self.text:
            counts["output_tokens_details"] = {"reasoning_tokens": usage.reasoning}
        return {"output": output, "usage": counts, "request_id": self.request_id}


def _piece(event: ChatEvent, choice: Choice) -> Choice:
    """What one event added to its choice."""
    calls = [event.call] if event.call is not None else []
    logprobs = list(event.logprobs)
    return Choice(event.content, event.reasoning, calls, logprobs, event.finish, facts=event.facts)


def tool_calls(choice: Choice, first: int = 0) -> list[dict[str, Any]]:
    """Whole calls, as both protocols write them; `first` is the number of the first one."""
    return [
        {
            "index": index,
            "id": call.id,
            "type": "function",
            "function": {"name": call.name, "arguments": call.arguments},
        }
        for index, call in enumerate(choice.calls, first)
    ]


def logprobs(tokens: Sequence[Logprob]) -> dict[str, Any]:
    """`logprobs` of a chat's choice, in both protocols."""
    return {"content": [_token(each) | {"top_logprobs": [*map(_token, each.top)]} for each in tokens]}


def _token(each: Alternative) -> dict[str, Any]:
    return {"token": each.token, "bytes": list(each.bytes), "logprob": each.logprob}


def tokenized(tokens: Sequence[tuple[int, str]], request_id: str) -> dict[str, Any]:
    """The answer of the tokenizer route."""
    output = {"token_ids": [token for token, _ in tokens], "tokens": [text for _, text in tokens]}
    return {"output": output, "usage": {"input_tokens": len(tokens)}, "request_id": request_id}


def models(names: Sequence[tuple[str, str]], query: Mapping[str, str], request_id: str) -> dict[str, Any]:
    """A page of `(name, checkpoint that answers)` pairs; `query` may hold page_no, page_size and model."""
    page, size = (_page(query, name, default) for name, default in (("page_no", 1), ("page_size", 10)))
    found = [pair for pair in names if query.get("model") in (None, "", pair[0])]
    output = {
        "total": len(found),
        "page_no": page,
        "page_size": size,
        "models": [model_entry(*pair) for pair in found[(page - 1) * size : page * size]],
    }
    return {"output": output, "request_id": request_id}


def model_entry(name: str, answers: str) -> dict[str, Any]:
    """A model by the name that is asked for, and the checkpoint that answers."""
    return {"model": name, "provider": "qnext", "source": "qnext", "opensource": True, "checkpoint": answers}


def _page(query: Mapping[str, str], name: str, default: int) -> int:
    text = query.get(name) or str(default)
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:9]) <= 10**6):
        raise invalid(f"Range of {name} should be [1, 1000000]", name)
    return int(text[:9])
