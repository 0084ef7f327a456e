from __future__ import annotations

import json
import shlex

import httpx
import pytest

from qnext.server.welcome import example_calls

from .conftest import Live


def test_the_three_calls_work_as_printed(live: Live, capsys: pytest.CaptureFixture[str]) -> None:
    _, curl, openai, dashscope = example_calls(live.url + "/", live.key, "tiny-instruct").split("# ")
    words = shlex.split(curl.split("\n", 1)[1])
    headers = dict(words[i + 1].split(": ") for i, word in enumerate(words) if word == "-H")
    answer = httpx.post(words[1], headers=headers, json=json.loads(words[words.index("-d") + 1]))
    assert answer.json()["choices"][0]["message"]["content"] == "Hello there, friend."
    for snippet in (openai, dashscope):
        scope: dict[str, object] = {}
        exec(snippet.split("\n", 1)[1], scope)
        if snippet is openai:
            scope["client"].close()  # type: ignore[attr-defined]
    assert capsys.readouterr().out == "Hello there, friend.\n" * 2
