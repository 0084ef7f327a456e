"""Closing: a short way to end what a grammar has begun, found by walking there on a copy.

Used by `matcher` when the room for an answer is scarce, and by `grammar_compiler` to see that a grammar can
be obeyed. Invariant: the same place gives the same way, and a way that is given is one the grammar allows.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
from llguidance import LLMatcher

from .lexicon import OUTSIDE, Lexicon, after

_STEPS, _CAREFUL_STEPS, _TRIES = 1024, 128, 4000
_CLOSES, _CHANGES, _SAME = range(3)
_DEEPEST = 100


class TooComplex(RuntimeError):
    """The grammar's own limits of time and memory were met, or it turned out to allow nothing."""


def closing(
    lexicon: Lexicon,
    core: LLMatcher,
    state: int,
    budget: int,
    taste: np.ndarray,
    *,
    careful: bool = True,
) -> tuple[int, ...] | None:
    """Tokens, at most `budget`, after which the answer may end; None if none were found. `state` says where
    in a JSON text `core` is. `taste` [V] decides between tokens that close nothing: the highest is taken.
    `careful`: where patterns lead the soonest way in circles, look for another. Raises TooComplex."""
    way, ended = _walk(lexicon, core, state, min(budget, _STEPS), taste)
    for hurry in (0, 1) if careful and not ended else ():
        steps = min(budget, _STEPS if hurry else _CAREFUL_STEPS)
        way, ended = _walk(lexicon, core, state, steps, _Scout(lexicon, hurry))
        if ended:
            break
    return way if ended else None


def leads(core: LLMatcher, way: tuple[int, ...]) -> bool:
    """Whether the answer may end after `way`."""
    core = core.deep_copy()
    return core.try_consume_tokens([*way]) == len(way) and core.is_accepting()


def nests_without_end(lexicon: Lexicon, core: LLMatcher) -> bool:
    """Whether the soonest way from the beginning only opens more and more."""
    way, ended = _walk(lexicon, core, OUTSIDE, _STEPS, lexicon.lengths)
    _, opened = after(OUTSIDE, b"".join(lexicon.tokens[token] for token in way))
    return not ended and opened > _DEEPEST


def _walk(
    lexicon: Lexicon, core: LLMatcher, state: int, budget: int, taste: np.ndarray | _Scout
) -> tuple[tuple[int, ...], bool]:
    """Tokens up to the end, or as many as the budget allows; and whether the end was reached. Where no token
    closes anything, the one most to the `taste` comes next."""
    core = core.deep_copy()
    way: list[int] = []
    while not (ended := core.is_accepting()) and len(way) < budget:
        bits = _bits(core)
        token = lexicon.orders[state].first(bits)
        if token is None or (isinstance(taste, _Scout) and lexicon.tokens[token].isdigit()):
            ids = _ids(bits)
            if not len(ids):
                raise TooComplex("the grammar allows no token")
            token = taste(core, state, ids) if isinstance(taste, _Scout) else int(ids[taste[ids].argmax()])
        if not core.consume_token(token):
            raise TooComplex(core.get_error())
        way.append(token)
        state, _ = after(state, lexicon.tokens[token])
    return tuple(way), ended


class _Scout:
    """Tries tokens of one sign: best is one that lets something close, then one that changes what may come
    next; where none does, the longest token leads on. Of several, the one used least on this way. The
    longest is taken without any trying until it was used `hurry` times."""

    def __init__(self, lexicon: Lexicon, hurry: int) -> None:
        self._lexicon, self._hurry = lexicon, hurry
        self._used: Counter[int] = Counter()
        self._tries = 0

    def __call__(self, core: LLMatcher, state: int, ids: np.ndarray) -> int:
        lexicon, rank = self._lexicon, _SAME
        best = int(ids[lexicon.lengths[ids].argmax()])
        if self._used[best] < self._hurry:
            self._used[best] += 1
            return best
        single = ids[lexicon.single[ids]].tolist() if len(ids) > 1 else []
        self._tries += len(single)
        if single and self._tries <= _TRIES:
            before = _bits(core)
            ranks = {token: (self._rank(core, state, token, before), self._used[token]) for token in single}
            best = min(single, key=ranks.__getitem__)
            rank = ranks[best][0]
        if rank == _SAME:
            best = min(ids.tolist(), key=lambda token: (self._used[token], -lexicon.lengths[token]))
        self._used[best] += 1
        return int(best)

    def _rank(self, core: LLMatcher, state: int, token: int, before: np.ndarray) -> int:
        core = core.deep_copy()
        if not core.consume_token(token):
            raise TooComplex(core.get_error())
        if core.is_accepting():
            return _CLOSES
        bits, (state, _) = _bits(core), after(state, self._lexicon.tokens[token])
        found = self._lexicon.orders[state].first(bits)
        if found is not None and not self._lexicon.tokens[found].isdigit():
            return _CLOSES
        return _SAME if np.array_equal(bits, before) else _CHANGES


def _ids(bits: np.ndarray) -> np.ndarray:
    """The ids of a mask; quick where they are few."""
    places = np.flatnonzero(bits)
    rows, columns = np.nonzero(np.unpackbits(bits[places, None], axis=1, bitorder="little"))
    return places[rows] * 8 + columns


def _bits(core: LLMatcher) -> np.ndarray:
    bits = np.frombuffer(core.compute_bitmask(), dtype=np.uint8)
    if core.is_error():
        raise TooComplex(core.get_error())
    return bits
