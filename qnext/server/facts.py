"""Facts of an answer, as all dialects write them: times, counts, and the experts its tokens went through.

Called by `openai`, `openai_completions` and `dashscope` for choices that end. Invariant: nothing is written
for a request that did not ask, so that answers stay exactly what the SDKs know.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from qnext.engine.request import Facts


def written(facts: Facts | None) -> dict[str, Any]:
    """What stands beside `finish_reason` in a choice: `facts`, and, where they were asked for, vLLM's
    `routed_experts` [tokens, layers, k]."""
    if facts is None:
        return {}
    numbers = {each.name: getattr(facts, each.name) for each in fields(facts)}
    experts = numbers.pop("routed_experts")
    return {"facts": numbers} | ({} if experts is None else {"routed_experts": experts.tolist()})
