"""Which kept states to give up when memory is short: policies compared on replayed traces, without a model.

    python benchmarks/eviction.py [requests]

A text is a list of blocks of 16 tokens; a state weighs as much as 192 blocks, as for the 80B shape (72 MiB of
state against 24 KiB a token). Requests are replayed one after the other against `PrefixCache`, states are
kept where the engine keeps them. Prints one JSON line for each trace and each memory: the share of all prompt
blocks that was computed under each policy, and with memory without end (`all`). Seeded: the same everywhere.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from random import Random

from qnext.engine.cache import Checkpoint, PrefixCache, Root
from qnext.engine.pages import Pages

STATE = 192  # blocks that one state weighs
MEMORIES = (3_000, 10_000, 30_000)  # blocks; 10,000 are 3.7 GiB of the 80B shape
LONGEST = 2_400  # blocks of one text
ROOT: Root = ("", False)
TRACES = ("chats", "agents", "documents", "mixed")


@dataclass(frozen=True)
class Asked:
    """A request: its prompt, the lengths at which messages begin, and the whole text with the answer."""

    prompt: list[int]
    begins: list[int]
    text: list[int]


class Talk:
    """A text that grows from request to request."""

    def __init__(self, fresh: Iterator[int], head: list[int]) -> None:
        self._fresh, self._text = fresh, list(head)
        self._begins = [len(head)] if head else []

    @property
    def length(self) -> int:
        return len(self._text)

    def ask(self, question: int, answer: int) -> Asked:
        self._begins.append(len(self._text))
        self._text += [next(self._fresh) for _ in range(question)]
        prompt = list(self._text)
        self._text += [next(self._fresh) for _ in range(answer)]
        return Asked(prompt, list(self._begins), list(self._text))


def chats(random: Random, fresh: Iterator[int]) -> Iterator[Asked]:
    """People who come and go: 40 at a time, two system prompts, conversations of seven turns or so."""
    heads = [[next(fresh) for _ in range(blocks)] for blocks in (60, 15)]
    talks: list[Talk] = []
    while True:
        if len(talks) < 40:
            talks.append(Talk(fresh, heads[random.random() < 0.3]))
        # whoever has just been answered is the likeliest to ask again
        place = len(talks) - 1 - min(int(random.expovariate(1 / 12)), len(talks) - 1)
        talk = talks.pop(place)
        yield talk.ask(random.randrange(2, 20), random.randrange(5, 40))
        if random.random() > 0.15:
            talks.append(talk)


def agents(random: Random, fresh: Iterator[int]) -> Iterator[Asked]:
    """Tool loops: three programs with long instructions, six tasks at a time, about 20 calls each."""
    heads = [[next(fresh) for _ in range(blocks)] for blocks in (500, 300, 120)]
    tasks: list[Talk] = []
    while True:
        while len(tasks) < 6:
            tasks.append(Talk(fresh, random.choice(heads)))
        task = random.choice(tasks)
        yield task.ask(random.randrange(5, 120), random.randrange(3, 15))
        if random.random() < 0.05 or task.length > LONGEST:
            tasks.remove(task)


def documents(random: Random, fresh: Iterator[int]) -> Iterator[Asked]:
    """Long documents that are asked about a few times, and as many prompts that are seen only once."""
    open_ones: list[tuple[list[int], int]] = []
    while True:
        if random.random() < 0.5:  # seen once
            yield Talk(fresh, []).ask(random.randrange(20, 400), 10)
            continue
        if len(open_ones) < 4:
            open_ones.append(
                ([next(fresh) for _ in range(random.randrange(500, 2000))], random.randrange(1, 7))
            )
        text, left = open_ones.pop(random.randrange(len(open_ones)))
        yield Talk(fresh, text).ask(random.randrange(2, 10), random.randrange(5, 30))
        if left > 1:
            open_ones.append((text, left - 1))


def trace(name: str, requests: int) -> list[Asked]:
    fresh, random = count(), Random(1)
    kinds = {"chats": chats, "agents": agents, "documents": documents}
    sources = [kind(random, fresh) for each, kind in kinds.items() if name in (each, "mixed")]
    return [next(random.choices(sources, (6, 3, 1)[: len(sources)])[0]) for _ in range(requests)]


class LRU(PrefixCache):
    """The one that was not used for longest goes."""

    def worth(self, checkpoint: Checkpoint) -> float:
        return self._turn


class LFU(PrefixCache):
    """The one that was used least goes; of those the oldest."""

    def worth(self, checkpoint: Checkpoint) -> float:
        return checkpoint.uses


class GDS(PrefixCache):
    """As the engine's, but without regard to how often."""

    def worth(self, checkpoint: Checkpoint) -> float:
        return (super().worth(checkpoint) - self._clock) / checkpoint.uses + self._clock


POLICIES: dict[str, type[PrefixCache]] = {"gdsf": PrefixCache, "lru": LRU, "lfu": LFU, "gds": GDS}


def replay(asked: list[Asked], policy: type[PrefixCache], memory: int) -> float:
    """The share of prompt blocks that were computed."""
    pages = Pages(memory)
    cache = policy(pages, 1, STATE)
    computed = 0
    for each in asked:
        hit, known = cache.find(ROOT, each.prompt, len(each.prompt) - 1)
        begin, held = 0, list[int]()
        if hit is not None:
            cache.touch(hit)
            begin, held = hit.length, cache.path(hit)
            pages.use(held)
        computed += len(each.prompt) - begin
        missing = len(each.text) - len(held)
        assert cache.make_room(missing), "a text is larger than the memory"
        held += pages.take(missing) or []
        cursor = cache.cursor(ROOT)
        marks = {*each.begins, known, len(each.prompt) - 1, len(each.text)}
        for mark in sorted(mark for mark in marks if mark > begin):
            cache.insert(cursor, ROOT, each.text, mark, held)
        pages.drop(held)
    return computed / sum(len(each.prompt) for each in asked)


def main() -> None:
    requests = int(sys.argv[1]) if len(sys.argv) > 1 else 1500
    head = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(head, capture_output=True, text=True).stdout.strip()
    for name in TRACES:
        asked = trace(name, requests)
        everything = round(replay(asked, PrefixCache, sum(len(e.text) + 9 * STATE for e in asked)), 4)
        for memory in MEMORIES:
            found = {policy: round(replay(asked, kind, memory), 4) for policy, kind in POLICIES.items()}
            line = {"trace": name, "requests": requests, "memory_blocks": memory, **found, "all": everything}
            print(json.dumps({"benchmark": "eviction", "commit": commit, **line}), flush=True)


if __name__ == "__main__":
    main()
