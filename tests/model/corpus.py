"""A corpus of broken checkpoints: what is whole, how it is broken, what the refusal must name."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from qnext.model.qwen3_next import Qwen3Next

from .checkpoints import fp8_checkpoint, random_tensors, tiny_config, write

Damage = Callable[[Path], object]


def plain(path: Path, *, sharded: bool = False, **changes: Any) -> Path:
    config = tiny_config(**changes)
    return write(path, config, random_tensors(config), sharded=sharded)


GOOD: dict[str, Callable[[Path], Path]] = {
    "single": plain,
    "sharded": lambda path: plain(path, sharded=True),
    "tied": lambda path: plain(path, tie_word_embeddings=True),
    "fp8": lambda path: fp8_checkpoint(path, tiny_config(), block=8),
}


class Corpus:
    """Cases for `pytest.mark.parametrize`: the name of a whole checkpoint, the damage, the words of the
    message.
    """

    def __init__(self) -> None:
        self.cases: list[Any] = []

    def broken(self, good: str, *needles: str) -> Callable[[Damage], Damage]:
        """Add the decorated function as the damage."""

        def add(damage: Damage) -> Damage:
            self.cases.append(pytest.param(good, damage, needles, id=damage.__name__))
            return damage

        return add


def assert_refused(path: Path, needles: Iterable[str]) -> None:
    with pytest.raises(ValueError) as caught:
        Qwen3Next.from_pretrained(path)
    message = str(caught.value)
    assert [needle for needle in needles if needle not in message] == [], message
