"""The snippets of the tutorial that many start from, to the letter, against the embedded models.

Changed are only the base URL and the key, by the SDK's own environment variables, and the import of
`Streaming`, which the SDK does not have.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import dashscope
import httpx
import pytest

from ..process import Server, start, stop
from ..server.conftest import Live

BASIC = r"""
import os
from dashscope import Generation
os.environ['DASHSCOPE_API_KEY'] = 'your_api_key'
response = Generation.call(
    model='qwen3-next-80b-a3b-instruct',
    prompt='Explain the benefits of MoE architectures in LLMs.',
    max_tokens=200,
    temperature=0.7
)
if response.status_code == 200:
    print(response.output['text'])
else:
    print(f"Error: {response.message}")
"""
STREAMING = r"""
from dashscope import Streaming
for response in Streaming.call(
    model='qwen3-next-80b-a3b-instruct',
    prompt='Generate a Python function for sentiment analysis.',
    max_tokens=500,
    incremental_output=True
):
    if response.status_code == 200:
        print(response.output['text_delta'], end='', flush=True)
    else:
        print(f"Error: {response.message}")
        break
"""
TOOLS = r"""
tools = [{
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get current weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}}
        }
    }
}]
response = Generation.call(
    model='qwen3-next-80b-a3b-instruct',
    prompt='What\'s the weather in Beijing?',
    tools=tools,
    tool_choice='auto'
)
"""
RETRY = r"""
import time
from dashscope import Generation
def call_with_retry(prompt, max_retries=3):
    for attempt in range(max_retries):
        response = Generation.call(model='qwen3-next-80b-a3b-instruct', prompt=prompt)
        if response.status_code == 200:
            return response
        time.sleep(2 ** attempt)
    raise Exception("Max retries exceeded")
"""
# The text gives no program for these two: up to ten prompts a call, and the compatible base URL.
BATCH = r"""
from dashscope import Generation
response = Generation.call(
    model='qwen3-next-80b-a3b-instruct',
    prompt=[f'What is the capital of {country}?' for country in ('France', 'Japan', 'Peru')],
    max_tokens=40
)
for choice in response.output['choices']:
    print(choice['index'], choice['message']['content'])
print(response.output['text'])
"""
OPENAI = r"""
import os
from openai import OpenAI
client = OpenAI(
    api_key=os.environ['DASHSCOPE_API_KEY'],
    base_url='https://dashscope.aliyuncs.com/compatible-mode/v1'
)
response = client.chat.completions.create(
    model='qwen3-next-80b-a3b-instruct',
    messages=[{'role': 'user', 'content': 'Explain the benefits of MoE architectures in LLMs.'}],
    max_tokens=200,
    temperature=0.7
)
print(response.choices[0].message.content)
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    process, running = start([], tmp_path_factory.mktemp("home"))
    yield running
    stop(process)


def run(program: str, server: Server) -> str:
    environ = {"DASHSCOPE_API_KEY": server.key, "DASHSCOPE_HTTP_BASE_URL": f"{server.base}/api/v1"}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | environ,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_basic_call(server: Server) -> None:
    out = run(BASIC, server)
    assert out.strip() and not out.startswith("Error")


def test_streaming(server: Server) -> None:
    out = run(
        STREAMING.replace("from dashscope import Streaming", "from qnext.client import Streaming"), server
    )
    assert out.strip() and not out.startswith("Error")
    installed = run("import qnext.client; qnext.client.install()\n" + STREAMING, server)
    assert installed.strip() and not installed.startswith("Error")


def test_tools(server: Server) -> None:
    show = "\nprint(response.output.choices[0].finish_reason)"
    show += "\nprint(response.output.choices[0].message.tool_calls[0]['function'])"
    out = run(
        "from dashscope import Generation\n" + TOOLS.replace("auto'", "auto',\n    temperature=0") + show,
        server,
    )
    assert out == "tool_calls\n{'name': 'get_weather', 'arguments': '{\"city\": \"Beijing\"}'}\n"
    assert (
        run("from dashscope import Generation\n" + TOOLS + "\nprint(response.status_code)", server) == "200\n"
    )


def test_retry(server: Server) -> None:
    out = run(RETRY + "\nprint(call_with_retry('Hello!').output['text'])", server)
    assert out.strip()


def test_retry_outlives_a_full_server(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dashscope, "base_http_api_url", live.url + "/api/v1")
    monkeypatch.setattr(dashscope, "api_key", live.key)
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 2:
            live.instruct.refusal = None

    monkeypatch.setattr(time, "sleep", sleep)
    names: dict[str, Any] = {}
    exec(RETRY, names)
    live.instruct.refusal = RuntimeError("full")
    assert names["call_with_retry"]("Hi").output["text"] == "Hello there, friend." and waits == [1, 2]
    live.instruct.refusal = RuntimeError("full")
    with pytest.raises(Exception, match="Max retries exceeded"):
        names["call_with_retry"]("Hi")


def test_batch_of_prompts(server: Server) -> None:
    *answers, first = run(BATCH, server).strip().split("\n")
    assert [line[:2] for line in answers if line[:2] in ("0 ", "1 ", "2 ")] == ["0 ", "1 ", "2 "]
    assert first


def test_openai_mode(server: Server) -> None:
    assert run(OPENAI.replace("https://dashscope.aliyuncs.com", server.base), server).strip()


def test_its_header_parameters_and_wrong_base(server: Server) -> None:
    """`X-DashScope-API-Key`, `max_context_length`, and the native path below the compatible base."""
    body = {
        "model": "qwen3-next-80b-a3b-instruct",
        "input": {"messages": [{"role": "user", "content": "Hello!"}]},
        "parameters": {"max_context_length": 131072, "top_p": 0.9, "repetition_penalty": 1.1},
    }
    for base in ("/api/v1", "/compatible-mode/v1"):
        answer = httpx.post(
            f"{server.base}{base}/services/aigc/text-generation/generation",
            headers={"X-DashScope-API-Key": server.key},
            json=body,
            timeout=60,
        )
        assert answer.status_code == 200 and answer.json()["output"]["text"], answer.text
