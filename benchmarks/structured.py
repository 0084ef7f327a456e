"""Whether structured answers are always valid: random JSON schemas, random questions, guesses on.

    python benchmarks/structured.py [pairs] [MODEL] [guesses]

As many guesses are made as pay, which may be none, or always `guesses`. Half of the answers are greedy,
half are drawn at a high temperature; lengths are 60 to 200 tokens. Prints one JSON line: answers, valid ones
(by the `jsonschema` library), answers that ended at the length limit, and the share of right guesses.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from random import Random
from typing import Any

import jsonschema

from qnext import LLM, EngineConfig, SamplingParams

WORDS = ("name", "age", "city", "kind", "items", "size", "colour", "owner", "price", "notes")


def schema(random: Random, depth: int = 0) -> dict[str, Any]:
    """A random schema of the kinds that applications ask for."""
    kinds = ["string", "integer", "number", "boolean", "null", "enum"] + (
        ["object", "array"] if depth < 2 else []
    )
    kind = "object" if depth == 0 else random.choice(kinds)
    if kind == "object":
        names = random.sample(WORDS, random.randrange(1, 5))
        needed = [name for name in names if random.random() < 0.7]
        inner = {name: schema(random, depth + 1) for name in names}
        return {"type": "object", "properties": inner, "required": needed, "additionalProperties": False}
    if kind == "array":
        least = random.randrange(2)
        return {"type": "array", "items": schema(random, depth + 1), "minItems": least, "maxItems": least + 3}
    if kind == "enum":
        return {"enum": random.sample(WORDS, 3)}
    if kind == "string" and random.random() < 0.3:
        return {"type": "string", "maxLength": random.randrange(1, 30)}
    if kind == "integer" and random.random() < 0.5:
        return {"type": "integer", "minimum": 0, "maximum": random.randrange(1, 1000)}
    return {"type": kind}


def ask(llm: LLM, seed: int) -> tuple[bool, str, str]:
    random = Random(seed)
    wanted = schema(random)
    words = random.sample(WORDS, 3)
    messages = [{"role": "user", "content": f"Give me the {', the '.join(words)} of number {seed} in JSON."}]
    heat = 0.0 if seed % 2 else 1.5
    wish = SamplingParams(temperature=heat, seed=seed, max_tokens=random.randrange(60, 200))
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": wanted}}
    answer = llm.chat(messages, wish, response_format=form)
    try:
        jsonschema.validate(json.loads(answer.text), wanted)
    except (ValueError, jsonschema.ValidationError):
        return False, answer.finish_reason, f"{seed}: {answer.text}"
    return True, answer.finish_reason, ""


def main() -> None:
    pairs = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    model = sys.argv[2] if len(sys.argv) > 2 else "tiny-instruct"
    head = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(head, capture_output=True, text=True).stdout.strip()
    guesses = int(sys.argv[3]) if len(sys.argv) > 3 else None
    engine = EngineConfig() if guesses is None else EngineConfig(draft_tokens=guesses, fixed_drafts=True)
    with LLM(model, engine=engine) as llm, ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda seed: ask(llm, seed), range(pairs)))
        counters = llm.engine.stats().counters
    line = {
        "benchmark": "structured",
        "device": platform.processor() or platform.machine(),
        "commit": commit,
        "model": model,
        "answers": len(found),
        "valid": sum(fine for fine, *_ in found),
        "ended_by_length": sum(reason == "length" for _, reason, _ in found),
        "accepted": round(counters.accepted_tokens / max(1, counters.drafted_tokens), 3),
        "drafted": counters.drafted_tokens,
        "wrong": [text for *_, text in found if text][:5],
    }
    print(json.dumps(line))


if __name__ == "__main__":
    main()
