"""A small stand-in for the data folder: the files that the recipes name, in their formats, written by a
program.
"""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import zstandard

NAMES = ("Tom", "Lily", "Ben", "Mia", "Sam")
THINGS = ("ball", "cake", "boat", "kite", "hat", "dog")
PLACES = ("park", "garden", "house", "river", "forest")


def story(random: Random) -> str:
    name, thing, place = (random.choice(words) for words in (NAMES, THINGS, PLACES))
    return (
        f"One day, {name} went to the {place}. {name} had a red {thing}. The {thing} was new. "
        f'Then it began to rain. {name} ran home with the {thing}. Mom said, "Come in." The end.'
    )


def write_corpus(root: Path) -> None:
    """Fill `root` with `train/` and `multilingual/` files of a few dozen texts each."""
    random = Random(0)
    stories = "\n\n".join(story(random) for _ in range(300))
    books = [{"title": "Tales", "gutenberg_id": 1, "lang": "en", "author": "A", "text": stories}]
    _write(root / "train/tinystories_en_a.txt.zst", stories)
    _write(root / "train/tinystories_en_b.txt.zst", stories)
    # as the real one: it begins with the text of the file beside it
    _write(root / "train/tinystories_en_lower.txt.zst", f"{stories}\n\n{stories}".lower())
    _write(root / "train/gutenberg_tales.jsonl.zst", "\n".join(map(json.dumps, books)))
    _write(root / "multilingual/tatoeba_eng_cmn.tsv.zst", "Hello.\t你好。\nThank you.\t谢谢。\n" * 20)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(zstandard.compress(text.encode()))
