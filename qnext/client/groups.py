"""Groups: many prompts, up to ten in one call.

Called by programs that have many short prompts for one model. Invariant: as many answers come back as prompts
were given, in their order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

MAX_PROMPTS = 10


def answer_all(
    call: Callable[..., Any], prompts: Sequence[str], *, size: int = MAX_PROMPTS, **kwargs: Any
) -> list[str]:
    """The answers' texts. `call` is `Generation.call` or acts like it; `kwargs` (`model`, ...) go to each
    call. Raises ValueError for a group size that the server refuses, RuntimeError for a call that fails."""
    if not 1 <= size <= MAX_PROMPTS:
        raise ValueError(f"size is {size}: give 1 to {MAX_PROMPTS}")
    texts: list[str] = []
    for start in range(0, len(prompts), size):
        group = list(prompts[start : start + size])
        answer = call(prompt=group, result_format="message", **kwargs)
        if answer.status_code != 200:
            raise RuntimeError(f"{answer.code}: {answer.message} (request {answer.request_id})")
        found = sorted(answer.output["choices"], key=lambda choice: int(choice["index"]))
        texts += [choice["message"]["content"] for choice in found]
    return texts
