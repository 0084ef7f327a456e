"""`Streaming` through the real SDK, against a real server."""

from __future__ import annotations

import itertools
import subprocess
import sys
from typing import Any

import dashscope
import pytest

from qnext.client import Streaming, install

from ..server.conftest import Live

WHOLE = "Hello there, friend."
NAMES = ("tiny-instruct", "qwen3-next-80b-a3b-instruct")  # the SDK merges snapshots itself for qwen names


@pytest.fixture(autouse=True)
def sdk(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dashscope, "base_http_api_url", live.url + "/api/v1")
    monkeypatch.setattr(dashscope, "api_key", live.key)


@pytest.mark.parametrize("model", NAMES)
@pytest.mark.parametrize("incremental", ["left out", None, True, False])
@pytest.mark.parametrize("result_format", ["text", "message"])
def test_deltas_join_to_the_text(model: str, incremental: Any, result_format: str) -> None:
    mode = {} if incremental == "left out" else {"incremental_output": incremental}
    frames = list(Streaming.call(model=model, prompt="Hi", result_format=result_format, **mode))
    assert len(frames) > 2 and all(frame.status_code == 200 for frame in frames)
    assert "".join(frame.output["text_delta"] for frame in frames) == WHOLE
    texts = [
        frame.output.text if result_format == "text" else frame.output.choices[0].message.content
        for frame in frames
    ]
    if incremental is False:
        assert texts[-1] == WHOLE and all(b.startswith(a) for a, b in itertools.pairwise(texts))
    else:
        assert texts == [frame.output["text_delta"] for frame in frames]
    assert frames[-1].usage.output_tokens > 2


def test_each_of_several_choices_has_its_own_deltas(live: Live) -> None:
    live.instruct.say("first one", "second")
    for incremental in (True, False):
        told = {0: "", 1: ""}
        for frame in Streaming.call(
            model="tiny-instruct", prompt="Hi", n=2, seed=4, incremental_output=incremental
        ):
            told[frame.output.choices[0]["index"]] += frame.output["text_delta"]
        assert told == {0: "first one", 1: "second"}


def test_thinking_is_no_text(live: Live) -> None:
    live.thinking.say("Hm.\n</think>\n\nYes.")
    frames = list(Streaming.call(model="tiny-thinking", messages=[{"role": "user", "content": "Hi"}]))
    assert "".join(frame.output["text_delta"] for frame in frames) == "Yes."
    assert "".join(frame.output.choices[0].message.reasoning_content for frame in frames) == "Hm."


def test_errors_are_frames(live: Live) -> None:
    (refused,) = Streaming.call(model="tiny-instruct", prompt="Hi", temperature=9)
    assert (refused.status_code, refused.code) == (400, "InvalidParameter") and refused.output is None
    live.instruct.fail("Hello there")
    *_, last = Streaming.call(model="tiny-instruct", prompt="Hi")
    assert (last.status_code, last.code) == (500, "InternalError")


def test_install_is_opt_in() -> None:
    code = "import qnext.client, dashscope; assert not hasattr(dashscope, 'Streaming')"
    subprocess.run([sys.executable, "-c", code], check=True)
    try:
        install()
        from dashscope import Streaming as installed  # type: ignore[attr-defined]

        assert installed is Streaming
    finally:
        del dashscope.Streaming  # type: ignore[attr-defined]


def test_without_the_sdk_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dashscope", None)
    with pytest.raises(ImportError, match="pip install dashscope"):
        Streaming.call(model="m", prompt="Hi")
