"""The terminal: a conversation in it (the answer streamed, reasoning dimmed), and a bar for what takes long.

Called by `cli`. Invariant: what the user sees of an answer is what the next turn's history holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from .engine.request import SamplingParams
from .llm import LLM, GenerationError
from .text.events import ContentDelta, ReasoningDelta, ToolCallDelta
from .text.messages import Message


@contextmanager
def byte_bar(console: Console, label: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar while something is read; tell it the bytes done and the bytes in all."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(label, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def converse(llm: LLM, sampling: SamplingParams, system: str | None, console: Console) -> None:
    """Talk until an empty line, the end of input or Ctrl-C. Raises ValueError for a model that cannot."""
    if not llm.chat_format.has_template:
        raise ValueError("this is a base model: it continues text, but holds no conversations")
    history = [Message("system", system)] if system else []
    console.print("[dim]An empty line or Ctrl-D ends the conversation.[/]")
    while question := _ask(console):
        history.append(Message("user", question))
        try:
            history.append(Message("assistant", _answer(llm, history, sampling, console)))
        except GenerationError as error:
            history.pop()
            console.print(f"\nthe engine failed: {error}", style="red", markup=False)


def _ask(console: Console) -> str:
    try:
        return console.input("[bold]> [/]").strip()
    except EOFError:
        return ""


def _answer(llm: LLM, history: list[Message], sampling: SamplingParams, console: Console) -> str:
    """Print one answer as it comes; returns its text."""
    text, reasoning = "", False
    for event in llm.stream(history, sampling):
        match event:
            case ReasoningDelta():
                reasoning = True
                _show(console, event.text, style="dim")
            case ContentDelta():
                if reasoning and not text:
                    console.print("\n")
                text += event.text
                _show(console, event.text)
            case ToolCallDelta():
                _show(console, f"{event.call.name}({event.call.arguments})", style="cyan")
    console.print()
    return text


def _show(console: Console, text: str, style: str | None = None) -> None:
    """Nothing in `text` is markup, and the terminal wraps it, not we: pieces of a line come one by one."""
    console.print(text, end="", style=style, markup=False, highlight=False, soft_wrap=True)
