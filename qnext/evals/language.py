"""Language: which of the five taught languages a short answer is written in.

Used by the gate of greetings. Invariant: every answer of the small-talk tables is recognised as its own
language; what shares no word with any is none of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache

from qnext.synthetic.languages import CODES
from qnext.synthetic.slots import table

ENGLISH = "en"
_HAN = re.compile(r"[\u4e00-\u9fff]")
_WORD = re.compile(r"[^\W\d_]+|[¡¿]")  # Spanish alone opens with a mark


def language_of(text: str) -> str | None:
    """ "en", "pt", "es", "fr" or "zh", or None: the one that most of the words belong to. Words of several
    languages count less for each of them."""
    if _HAN.search(text):
        return "zh"
    words = _WORD.findall(text.lower())
    known = _vocabularies()
    shared = {word: sum(word in vocabulary for vocabulary in known.values()) for word in words}
    scores = {
        code: sum(1 / shared[word] for word in words if word in vocabulary)
        for code, vocabulary in known.items()
    }
    best = max(scores, key=lambda code: scores[code])
    return best if scores[best] else None


@cache
def _vocabularies() -> dict[str, frozenset[str]]:
    """The words of each alphabetic language in the tables."""
    talks = {code: table("languages")[code]["talk"] for code in CODES if code != "zh"}
    texts = {
        code: [text for pair in pairs for side in pair for text in side] for code, pairs in talks.items()
    }
    texts[ENGLISH] = [text for talk in table("manners")["talk"] for text in [*talk["say"], *talk["answer"]]]
    return {code: _words(entries) for code, entries in texts.items()}


def _words(texts: Iterable[str]) -> frozenset[str]:
    return frozenset(word for text in texts for word in _WORD.findall(text.lower()))
