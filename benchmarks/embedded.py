"""How often the embedded models are right on held-out questions of the families they were taught.

    python benchmarks/embedded.py [MODEL] [questions per family]

Prints one JSON line a family: the share of right answers (greedy), of answers that end by themselves, and of
answers that say something beside reasoning. Phrasings and words of these questions were kept out of training.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from random import Random

from qnext import LLM, SamplingParams
from qnext.synthetic.chat import FAMILIES
from qnext.synthetic.dialogue import Dialogue, Setting, check

GREEDY = SamplingParams(temperature=0, max_tokens=300, thinking_budget=300)


def measure(llm: LLM, family: str, count: int) -> dict[str, object]:
    """Ask `count` checkable questions of a family, many at a time."""
    make, _ = FAMILIES[family]
    setting = Setting(heldout=True, thinking=llm.chat_format.is_thinking)
    made = (make(Random(seed), setting) for seed in range(20 * count))
    dialogues = [dialogue for dialogue in made if dialogue.checkable][:count]

    def ask(dialogue: Dialogue) -> tuple[bool, bool, bool]:
        answer = llm.chat(dialogue.messages[:-1], GREEDY, tools=dialogue.tools or None)
        right = check(dialogue, answer.text, answer.tool_calls)
        return right, answer.finish_reason != "length", bool(answer.text or answer.tool_calls)

    with ThreadPoolExecutor(16) as pool:
        results = list(pool.map(ask, dialogues))
    shares = [round(sum(column) / max(1, len(results)), 3) for column in zip(*results, strict=True)] or [
        0,
        0,
        0,
    ]
    return {
        "family": family,
        "questions": len(results),
        "right": shares[0],
        "ended": shares[1],
        "answered": shares[2],
    }


def main() -> None:
    name = sys.argv[1] if len(sys.argv) > 1 else "tiny-instruct"
    count = int(sys.argv[2]) if len(sys.argv) > 2 else 100
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True
    ).stdout.strip()
    with LLM(name) as llm:
        for family in FAMILIES:
            row = {
                "model": name,
                **measure(llm, family, count),
                "device": platform.machine(),
                "commit": commit,
            }
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
