"""The whole way with the embedded models: real engines behind a real server, asked by the real SDKs."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import dashscope
import httpx
import numpy as np
import openai
import pytest
import torch
import transformers
import uvicorn

from qnext import EngineConfig, Qwen3Next
from qnext.engine.engine import Engine
from qnext.models import EMBEDDED, locate
from qnext.server.admission import Admission
from qnext.server.app import create_app
from qnext.server.keys import Keys
from qnext.server.service import Served, Service
from qnext.server.settings import Settings
from qnext.server.store import open_store
from qnext.text.chat import Chat

from ..process import listener

INSTRUCT, THINKING, BASE = (f"qwen3-next-80b-a3b-{kind}" for kind in ("instruct", "thinking", "base"))
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get current weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}


@dataclass
class Real:
    """A running server with its engines by model name."""

    url: str
    key: str
    engines: dict[str, Engine]

    @property
    def openai(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/compatible-mode/v1", api_key=self.key, max_retries=0)

    def all_free(self, seconds: int = 2) -> bool:
        """Whether every page and slot of every engine is back in time."""
        for _ in range(100 * seconds):
            stats = [each.stats() for each in self.engines.values()]
            if not any(each.pages_used or each.slots_used for each in stats):
                return True
            time.sleep(0.01)
        return False


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Real]:
    home = tmp_path_factory.mktemp("home")
    settings, store = Settings(home=home), open_store(home)
    keys, admission = Keys(store), Admission(store, settings)
    config = EngineConfig(max_sequences=8, max_length=768)
    engines = {name: Engine.from_pretrained(locate(name), config) for name in EMBEDDED}
    served = {
        name: Served(name, engine, Chat.from_pretrained(locate(name)), engine.max_length, 0)
        for name, engine in engines.items()
    }
    app = create_app(Service(served, settings), keys, admission, settings)
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", lifespan="off"))
    with listener() as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        while not server.started:
            time.sleep(0.01)
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        dashscope.base_http_api_url = f"{url}/api/v1"
        yield Real(url, keys.create("tests")[1], engines)
        server.should_exit = True
        thread.join()
    admission.close()
    for engine in engines.values():
        engine.close()


def test_the_first_example_of_every_tutorial(real: Real) -> None:
    response = dashscope.Generation.call(
        model=INSTRUCT,
        prompt="What is the capital of France?",
        max_tokens=200,
        temperature=0.7,
        api_key=real.key,
    )
    assert response.status_code == 200 and response.output["text"]
    assert response.output.choices is None
    assert response.usage.output_tokens > 0 and real.all_free()


def test_a_seed_gives_one_text_by_every_way(real: Real) -> None:
    messages = [{"role": "user", "content": "Tell me a story about a fox."}]
    wish = {"model": INSTRUCT, "max_tokens": 60, "seed": 7, "temperature": 0.9}
    whole = real.openai.chat.completions.create(messages=messages, **wish).choices[0].message.content
    chunks = real.openai.chat.completions.create(messages=messages, stream=True, **wish)
    streamed = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    native = dashscope.Generation.call(messages=messages, api_key=real.key, **wish).output["text"]
    frames = dashscope.Generation.call(
        messages=messages,
        api_key=real.key,
        stream=True,
        incremental_output=True,
        result_format="message",
        **wish,
    )
    pieces = "".join(frame.output.choices[0].message.content for frame in frames)
    assert whole and whole == streamed == native == pieces


def test_twenty_at_once_get_what_each_gets_alone(real: Real) -> None:
    questions = [f"Tell me about number {n}, please." * (1 + n % 3) for n in range(20)]

    def ask(question: str) -> str:
        answer = real.openai.chat.completions.create(
            model=INSTRUCT, messages=[{"role": "user", "content": question}], temperature=0, max_tokens=24
        )
        return answer.choices[0].message.content or ""

    with ThreadPoolExecutor(20) as pool:
        together = list(pool.map(ask, questions))
    # bfloat16 may break a tie otherwise in another batch: the engine's own test is exact, in float32
    alone = [ask(question) for question in questions]
    assert sum(a == b for a, b in zip(together, alone, strict=True)) >= 16
    assert real.all_free()


def test_the_taught_tool_is_called(real: Real) -> None:
    answer = real.openai.chat.completions.create(
        model=INSTRUCT,
        messages=[{"role": "user", "content": "What's the weather in Beijing?"}],
        tools=[WEATHER],
        temperature=0,
        max_tokens=80,
    )
    (choice,) = answer.choices
    assert choice.finish_reason == "tool_calls" and choice.message.tool_calls
    call = choice.message.tool_calls[0].function
    assert call.name == "get_weather" and call.arguments == '{"city": "Beijing"}'


def test_thinking_closes_and_answers(real: Real) -> None:
    frames = dashscope.Generation.call(
        model=THINKING,
        messages=[{"role": "user", "content": "What is 12 plus 25?"}],
        api_key=real.key,
        stream=True,
        incremental_output=True,
        temperature=0,
    )
    reasoning = content = ""
    for frame in frames:
        message = frame.output.choices[0].message
        reasoning += message.reasoning_content
        content += message.content
    assert reasoning and content and "think>" not in reasoning + content
    assert frame.output.choices[0].finish_reason == "stop"
    assert frame.usage.output_tokens_details["reasoning_tokens"] > 0


def test_the_base_model_continues_text(real: Real) -> None:
    answer = real.openai.completions.create(
        model=BASE, prompt="Once upon a time", max_tokens=20, temperature=0
    )
    assert answer.choices[0].text.strip()


def test_the_engine_tells_how_it_went(real: Real) -> None:
    """Facts and experts of an answer that a stop text ended, then of the same prompt from the cache."""
    seen = []
    for _ in range(2):
        answer = real.openai.chat.completions.create(
            model=INSTRUCT,
            messages=[{"role": "user", "content": "Tell me how it went, and tell me all of it, please."}],
            temperature=0,
            max_tokens=30,
            stop="e",
            extra_body={"return_facts": True, "return_routed_experts": True},
        )
        told = answer.choices[0].model_dump()
        facts, usage = told["facts"], answer.usage
        assert usage is not None and usage.prompt_tokens_details is not None
        assert usage.prompt_tokens_details.cached_tokens == facts["cached_tokens"]
        assert facts["prefill_seconds"] > 0 and facts["drafted_tokens"] >= facts["accepted_tokens"]
        experts = np.asarray(told["routed_experts"])
        config = real.engines["tiny-instruct"].model_config
        assert experts.shape[1:] == (config.num_hidden_layers, config.num_experts_per_tok)
        assert 0 <= experts.min() <= experts.max() < config.num_experts
        assert len(experts) + facts["cached_tokens"] >= usage.prompt_tokens
        seen.append(facts)
    assert seen[0]["cached_tokens"] < seen[1]["cached_tokens"] and real.all_free()


def test_a_client_that_goes_away_leaves_nothing_behind(real: Real) -> None:
    body = {"model": BASE, "prompt": "Once", "max_tokens": 700, "stream": True, "seed": 1}
    for _ in range(3):
        with (
            httpx.Client(headers={"Authorization": f"Bearer {real.key}"}, timeout=30) as client,
            client.stream("POST", f"{real.url}/v1/completions", json=body) as response,
        ):
            next(response.iter_lines())
    assert real.all_free()


def test_a_client_that_stops_reading_holds_nobody_up(real: Real) -> None:
    """Its answer is computed to the end, waits for it in the server, and holds neither page nor slot."""
    body = json.dumps({"model": BASE, "prompt": "Once", "max_tokens": 600, "stream": True, "logprobs": 5})
    host, port = real.url.removeprefix("http://").split(":")
    with socket.socket() as silent:
        silent.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        silent.connect((host, int(port)))
        head = f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {real.key}\r\n"
        silent.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
        answer = real.openai.completions.create(model=BASE, prompt="Twice", max_tokens=5)
        assert answer.choices[0].text
        assert real.all_free(30)


def test_a_prompt_longer_than_the_context_is_refused_and_the_server_goes_on(real: Real) -> None:
    with pytest.raises(openai.BadRequestError, match=r"Range of input length should be \[1, 767\]"):
        real.openai.chat.completions.create(
            model=INSTRUCT, messages=[{"role": "user", "content": "far too long " * 400}]
        )
    assert real.all_free()
    assert httpx.get(f"{real.url}/healthz").json() == {"status": "ok"}


def test_embedded_checkpoints_load_in_transformers() -> None:
    path: Path = locate("tiny-instruct")
    theirs = transformers.Qwen3NextForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    ours = Qwen3Next.from_pretrained(path, dtype=torch.float32)
    ids = torch.tensor(Chat.from_pretrained(path).encode([{"role": "user", "content": "Hello!"}]).ids)
    with torch.no_grad():
        expected, found = theirs(ids[None]).logits[0], ours.logits(ours(ids))
    assert float((found - expected).abs().max()) <= 1e-4 * float(expected.abs().max())
