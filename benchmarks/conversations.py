"""How much of a conversation is computed again: tokens prefilled for each token that is really new.

    python benchmarks/conversations.py [MODEL] [--llama-server PROGRAM --gguf FILE --thinking-gguf FILE]

Replays five kinds of traffic, each turn built from the answers before it: a turn appended, the last turn
edited, thinking stripped from the history (by a thinking model's template), one system prompt under 50 users,
and a loop of 20 tool calls. A token is new where its text differs from everything asked or answered before.
Prints one JSON line a trace; `ratio` is prefilled / new from the second turn on, `worst` that of a turn.
With llama.cpp's server and the same models as GGUF files, the same traffic goes to it as token ids.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peers.llama_server import LlamaServer
from peers.process import missing

from qnext import LLM, SamplingParams
from qnext.engine.request import Request
from qnext.text.chat import Prompt
from qnext.text.events import ContentDelta, ToolCallDelta

Messages = list[dict[str, Any]]
GREEDY = SamplingParams(temperature=0, max_tokens=60)
TOPICS = (
    "the sea",
    "a small town",
    "bread",
    "winter",
    "an old clock",
    "the harbour at night",
    "two brothers",
)
SYSTEM = (
    "You are a helpful assistant of a small library. " + "Answer shortly and kindly, in full sentences. " * 20
)
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


# From a prompt and the trace's name: the answer's ids, and how many of the prompt's tokens were computed.
Answer = Callable[[Prompt, str], tuple[tuple[int, ...], int]]


def question(turn: int) -> str:
    topic = TOPICS[turn % len(TOPICS)]
    return f"Question {turn}: please tell me something about {topic}, and why people remember it for so long."


@dataclass
class Replay:
    """Asks, and compares what was computed with what was new."""

    llm: LLM
    name: str
    answer: Answer
    known: list[tuple[int, ...]] = field(default_factory=list)
    turns: list[tuple[int, int]] = field(default_factory=list)  # prefilled, new

    def ask(self, messages: Messages, tools: list[dict[str, Any]] | None = None) -> dict[str, Any]:
        """The model's turn, as a client would send it back."""
        chat = self.llm.chat_format
        prompt = chat.encode(messages, tools)
        answer, prefilled = self.answer(prompt, self.name)
        shared = max((common(prompt.ids, text) for text in self.known), default=0)
        self.turns.append((prefilled, len(prompt.ids) - shared))
        self.known.append(prompt.ids + answer)
        parser = chat.parser(prompt, tools=tools)
        events = [*parser.feed(answer), *parser.finish("stop")]
        text = "".join(event.text for event in events if isinstance(event, ContentDelta))
        calls = [event.call for event in events if isinstance(event, ToolCallDelta)]
        turn: dict[str, Any] = {"role": "assistant", "content": text if text or calls else "Yes."}
        if calls:
            turn["tool_calls"] = [
                {"id": c.id, "type": "function", "function": {"name": c.name, "arguments": c.arguments}}
                for c in calls
            ]
        return turn


def common(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    pairs = zip(one, other, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def append(replay: Replay) -> None:
    """Eight turns, each after the answers to the others."""
    messages: Messages = [{"role": "system", "content": SYSTEM}]
    for turn in range(8):
        messages.append({"role": "user", "content": question(turn)})
        messages.append(replay.ask(messages))


def edit(replay: Replay) -> None:
    """The last of three turns, worded anew six times."""
    messages: Messages = [{"role": "system", "content": SYSTEM}]
    for turn in range(2):
        messages.append({"role": "user", "content": question(turn)})
        messages.append(replay.ask(messages))
    for turn in range(6):
        replay.ask([*messages, {"role": "user", "content": f"{turn} is my number. " + question(turn + 3)}])


def shared(replay: Replay) -> None:
    """Fifty users with the same system prompt."""
    for user in range(50):
        ask = f"{user} is my number. " + question(user)
        replay.ask([{"role": "system", "content": SYSTEM}, {"role": "user", "content": ask}])


def tools(replay: Replay) -> None:
    """Twenty calls of a tool, each with its result, in one long turn."""
    messages: Messages = [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": "What is the weather in twenty cities?"},
    ]
    for call in range(20):
        turn = replay.ask(messages, [TOOL])
        if "tool_calls" not in turn:  # the model tells instead of calling: let the user ask on
            messages += [turn, {"role": "user", "content": f"What is the weather in city number {call} now?"}]
            continue
        result = {"sky": TOPICS[call % 7], "degrees": call, "wind": "from the north", "rain": "none today"}
        answers = [
            {"role": "tool", "tool_call_id": each["id"], "content": json.dumps(result)}
            for each in turn["tool_calls"]
        ]
        messages += [turn, *answers]


TRACES: dict[str, tuple[Callable[[Replay], None], bool]] = {  # and whether a thinking model is asked
    "append a turn": (append, False),
    "edit the last turn": (edit, False),
    "thinking stripped": (append, True),
    "shared system prompt, 50 users": (shared, False),
    "tool loop, 20 calls": (tools, False),
}


def engine(llm: LLM) -> Answer:
    """Our own, in this process; the trace's name keeps the traces apart."""

    def answer(prompt: Prompt, name: str) -> tuple[tuple[int, ...], int]:
        ends = llm.chat_format.eos_token_ids
        request = Request(prompt.ids, GREEDY, ends, boundaries=prompt.boundaries, cache_salt=name)
        outputs = list(llm.engine.submit(request))
        facts = outputs[-1].facts
        assert facts is not None
        ids = tuple(token for output in outputs for token in output.token_ids)
        return ids, len(prompt.ids) - facts.cached_tokens

    return answer


def server(running: LlamaServer, llm: LLM) -> Answer:
    """llama.cpp's server; the end that it does not tell is told for it."""

    def answer(prompt: Prompt, name: str) -> tuple[tuple[int, ...], int]:
        made = running.complete(prompt.ids, GREEDY.max_tokens or 0)
        ended = made.ended and made.tokens[-1:] != (llm.chat_format.eos_token_ids[0],)
        end = llm.chat_format.eos_token_ids[:1] if ended else ()
        return made.tokens + tuple(end), made.prefilled

    return answer


def replays(
    llm: LLM, thinking: LLM, program: Path | None, files: tuple[Path | None, Path | None]
) -> Iterator[tuple[str, Replay]]:
    for name, (trace, thinks) in TRACES.items():
        model = thinking if thinks else llm
        replay = Replay(model, name, engine(model))
        trace(replay)
        yield "qnext", replay
        gguf = files[thinks]
        if program is None or gguf is None or missing(program, gguf):
            continue
        with LlamaServer(program, gguf) as running:
            replay = Replay(model, name, server(running, model))
            trace(replay)
        yield "llama-server", replay


def summary(engine: str, replay: Replay) -> dict[str, Any]:
    later = replay.turns[1:]
    return {
        "engine": engine,
        "trace": replay.name,
        "turns": len(replay.turns),
        "first": replay.turns[0][0],
        "prefilled": sum(prefilled for prefilled, _ in later),
        "new": sum(new for _, new in later),
        "ratio": round(sum(p for p, _ in later) / sum(n for _, n in later), 3),
        "worst": round(max(p / n for p, n in later), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", nargs="?", default="tiny-instruct")
    for option in ("--llama-server", "--gguf", "--thinking-gguf"):
        parser.add_argument(option, type=Path)
    given = parser.parse_args()
    absent = missing(given.llama_server, given.gguf, given.thinking_gguf)
    if absent:
        print(json.dumps({"benchmark": "conversations", "engine": "llama-server", "skipped": absent}))
    head = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(head, capture_output=True, text=True).stdout.strip()
    start = {
        "benchmark": "conversations",
        "device": platform.processor() or platform.machine(),
        "commit": commit,
    }
    files = given.gguf, given.thinking_gguf
    with LLM(given.model) as llm, LLM("tiny-thinking") as thinking:
        for name, replay in replays(llm, thinking, given.llama_server, files):
            print(json.dumps({**start, **summary(name, replay)}), flush=True)


if __name__ == "__main__":
    main()
