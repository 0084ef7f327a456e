"""Every way that the real SDKs ask for a chat, sync and async, streamed and not, behind one signature.

Each way gives a `Told`: what its user would read, gathered from the frames where it streams. With the first
generation of `dashscope` its second surface is absent, and so are those ways.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import dashscope
import openai
from dashscope import AioGeneration, Generation

from .conftest import Live

HI: list[dict[str, Any]] = [{"role": "user", "content": "Hi"}]
HAS_CLIENT = hasattr(dashscope, "Client")


@dataclass
class Call:
    name: str = ""
    arguments: str = ""
    id: str = ""


@dataclass
class Told:
    """One answer, or one refusal: then `status` is not 200 and `raised` is the class that was raised, if
    any."""

    text: str = ""
    reasoning: str = ""
    calls: dict[int, Call] = field(default_factory=dict)
    finish: str | None = None
    input: int = 0
    output: int = 0
    total: int = 0
    request_id: str = ""
    frames: int = 0
    status: int = 200
    code: str = ""
    message: str = ""
    raised: str = ""

    def add(self, part: Any, finish: Any) -> None:
        """Takes in a message or delta, as an object or a mapping."""
        get = part.get if isinstance(part, Mapping) else lambda name: getattr(part, name, None)
        self.text += get("content") or ""
        self.reasoning += get("reasoning_content") or ""
        for i, raw in enumerate(get("tool_calls") or []):
            made = raw if isinstance(raw, Mapping) else raw.model_dump()
            index = made.get("index")
            call = self.calls.setdefault(i if index is None else index, Call())
            call.name += made["function"].get("name") or ""
            call.arguments += made["function"].get("arguments") or ""
            call.id += made.get("id") or ""
        self.finish = finish if finish not in (None, "null") else self.finish

    def count(self, input: int, output: int, total: int) -> None:
        self.input, self.output, self.total = input, output, total


Ask = Callable[[Live, str, Any, Any], Told]
WAYS: dict[str, Ask] = {}


def ask(way: str, live: Live, model: str = "tiny-instruct", messages: Any = HI, **params: Any) -> Told:
    return WAYS[way](live, model, messages, params)


async def close_sessions() -> None:
    """The second generation of `dashscope` keeps one session per loop and leaves closing it to its users."""
    if HAS_CLIENT:
        await dashscope.close_shared_aio_session()


def _native_frame(told: Told, frame: Any) -> None:
    told.frames += 1
    told.request_id = frame.request_id
    if frame.status_code != 200:
        told.status, told.code, told.message = frame.status_code, frame.code, frame.message
        return
    (choice,) = frame.output.choices
    told.add(choice.message, choice.finish_reason)
    told.count(frame.usage.input_tokens, frame.usage.output_tokens, frame.usage["total_tokens"])


def _native_arguments(live: Live, params: Any, stream: bool) -> dict[str, Any]:
    more = {"stream": True, "incremental_output": True} if stream else {}
    where = {"api_key": live.key, "base_address": live.url + "/api/v1"}
    return {"result_format": "message", **more, **where, **params}


def _generation(stream: bool) -> Ask:
    def way(live: Live, model: str, messages: Any, params: Any) -> Told:
        told = Told()
        found = Generation.call(model, messages=messages, **_native_arguments(live, params, stream))
        for frame in found if stream else [found]:
            _native_frame(told, frame)
        return told

    return way


def _aio_generation(stream: bool) -> Ask:
    async def work(told: Told, live: Live, model: str, messages: Any, params: Any) -> None:
        try:
            found = await AioGeneration.call(
                model, messages=messages, **_native_arguments(live, params, stream)
            )
            if stream:
                async for frame in found:
                    _native_frame(told, frame)
            else:
                _native_frame(told, found)
        finally:
            await close_sessions()

    def way(live: Live, model: str, messages: Any, params: Any) -> Told:
        told = Told()
        asyncio.run(work(told, live, model, messages, params))
        return told

    return way


def _split(create: Any, params: Any, rest: str) -> dict[str, Any]:
    """The parameters that `create` has by name, and the others under `rest`."""
    named = inspect.signature(create).parameters
    others = {name: value for name, value in params.items() if name not in named}
    return {name: value for name, value in params.items() if name in named} | {rest: others}


def _whole(told: Told, answer: Any) -> None:
    told.frames = 1
    told.request_id = getattr(answer, "request_id", None) or getattr(answer, "_request_id", None) or ""
    (choice,) = answer.choices
    told.add(choice.message, choice.finish_reason)
    _usage(told, answer.usage)


def _chunk(told: Told, chunk: Any) -> None:
    told.frames += 1
    told.request_id = getattr(chunk, "request_id", None) or chunk.id.removeprefix("chatcmpl-")
    for choice in chunk.choices:
        told.add(choice.delta, choice.finish_reason)
    if chunk.usage is not None:
        _usage(told, chunk.usage)


def _usage(told: Told, usage: Any) -> None:
    if hasattr(usage, "prompt_tokens"):
        told.count(usage.prompt_tokens, usage.completion_tokens, usage.total_tokens)
    else:
        told.count(usage.input_tokens, usage.output_tokens, usage.total_tokens)


def _failed(told: Told, error: Any) -> None:
    told.raised, told.message, told.code = type(error).__name__, error.message, error.code or ""
    told.status = getattr(error, "status_code", None) or 0  # none in mid-stream, where 200 has been said
    told.request_id = getattr(error, "request_id", None) or ""


def _client(protocol: str, stream: bool) -> Ask:
    base = "/api/v1" if protocol == "native" else "/compatible-mode/v1"

    def way(live: Live, model: str, messages: Any, params: Any) -> Told:
        told = Told()
        with dashscope.Client(
            api_key=live.key, base_url=live.url + base, protocol=protocol, max_retries=0
        ) as client:
            create = client.chat.completions.create
            asked = _split(create, params, "parameters")
            try:
                found: Any = create(model=model, messages=messages, stream=stream, **asked)
                for part in found if stream else []:
                    _chunk(told, part)
                if not stream:
                    _whole(told, found)
            except dashscope.v2.errors.DashScopeError as error:
                _failed(told, error)
        return told

    return way


def _async_client(protocol: str, stream: bool) -> Ask:
    base = "/api/v1" if protocol == "native" else "/compatible-mode/v1"

    async def work(told: Told, live: Live, model: str, messages: Any, params: Any) -> None:
        async with dashscope.AsyncClient(
            api_key=live.key, base_url=live.url + base, protocol=protocol, max_retries=0
        ) as client:
            create = client.chat.completions.create
            asked = _split(create, params, "parameters")
            try:
                found: Any = await create(model=model, messages=messages, stream=stream, **asked)
                if stream:
                    async for part in found:
                        _chunk(told, part)
                else:
                    _whole(told, found)
            except dashscope.v2.errors.DashScopeError as error:
                _failed(told, error)

    def way(live: Live, model: str, messages: Any, params: Any) -> Told:
        told = Told()
        asyncio.run(work(told, live, model, messages, params))
        return told

    return way


def _openai_arguments(stream: bool) -> dict[str, Any]:
    return {"stream": True, "stream_options": {"include_usage": True}} if stream else {}


def _openai(stream: bool) -> Ask:
    def way(live: Live, model: str, messages: Any, params: Any) -> Told:
        told = Told()
        base = live.url + "/compatible-mode/v1"
        with openai.OpenAI(base_url=base, api_key=live.key, max_retries=0) as client:
            create = client.chat.completions.create
            asked = _split(create, params, "extra_body") | _openai_arguments(stream)
            try:
                found: Any = create(model=model, messages=messages, **asked)
                for part in found if stream else []:
                    _chunk(told, part)
                if not stream:
                    _whole(told, found)
            except openai.APIError as error:
                _failed(told, error)
        return told

    return way


def _async_openai(stream: bool) -> Ask:
    async def work(told: Told, live: Live, model: str, messages: Any, params: Any) -> None:
        async with openai.AsyncOpenAI(base_url=live.url + "/v1", api_key=live.key, max_retries=0) as client:
            create = client.chat.completions.create
            asked = _split(create, params, "extra_body") | _openai_arguments(stream)
            try:
                found: Any = await create(model=model, messages=messages, **asked)
                if stream:
                    async for part in found:
                        _chunk(told, part)
                else:
                    _whole(told, found)
            except openai.APIError as error:
                _failed(told, error)

    def way(live: Live, model: str, messages: Any, params: Any) -> Told:
        told = Told()
        asyncio.run(work(told, live, model, messages, params))
        return told

    return way


for _stream, _suffix in ((False, ""), (True, "-stream")):
    WAYS["generation" + _suffix] = _generation(_stream)
    WAYS["aio-generation" + _suffix] = _aio_generation(_stream)
    if HAS_CLIENT:
        for _protocol in ("native", "openai"):
            WAYS[f"client-{_protocol}{_suffix}"] = _client(_protocol, _stream)
            WAYS[f"async-client-{_protocol}{_suffix}"] = _async_client(_protocol, _stream)
    WAYS["openai" + _suffix] = _openai(_stream)
    WAYS["async-openai" + _suffix] = _async_openai(_stream)

NATIVE = [name for name in WAYS if "openai" not in name]
COMPAT = [name for name in WAYS if "openai" in name]
