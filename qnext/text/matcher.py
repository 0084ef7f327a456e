"""The matcher: a grammar on its way through one answer. It says which tokens may come next.

Made by `grammar_compiler`'s grammars, moved by the engine with one thread. Invariants: what it allows always
leads on; once the room for the answer is scarce, it allows only what leaves enough of it to end in form;
what it allows depends on the accepted tokens and the room alone, not on where copies of it have gone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from llguidance import LLMatcher

from .closing import TooComplex, closing, leads
from .lexicon import OUTSIDE, Lexicon, after

_CANDIDATES = 32  # so many tokens are tried one by one where the room is scarce


@dataclass(frozen=True)
class Place:
    """Where an answer is. `path` stands for all accepted tokens, the last of which is `token`; `state`:
    outside or inside a string of JSON; `depth`: brackets that are open; `lead`: newlines that may still come
    before the answer."""

    path: int = 0
    token: int = -1
    state: int = OUTSIDE
    depth: int = 0
    lead: int = 0
    ended: bool = False


class Matcher:
    """`core` is this matcher's own. A token makes the way to the end longer by less than `reserve` tokens,
    and so does an open bracket; an end that is `far` is not looked for. `taste` is how ways are found."""

    def __init__(
        self, lexicon: Lexicon, core: LLMatcher, place: Place, reserve: int, far: int, taste: np.ndarray
    ) -> None:
        self._lexicon, self._core = lexicon, core
        self._reserve, self._far, self._taste = reserve, far, taste
        self._place, self._before = place, place  # where it is, and was one token ago
        self._ways: dict[int, tuple[int, ...] | None] = {}  # by path: a short way to the end

    def copy(self) -> Matcher:
        """Another one at the same place, to go its own way. (`LLMatcher.rollback` is no way back: masks that
        were asked for in between come again where they are wrong, as of llguidance 1.9.)"""
        made = Matcher(
            self._lexicon, self._core.deep_copy(), self._place, self._reserve, self._far, self._taste
        )
        made._before, made._ways = self._before, self._ways
        return made

    def allowed(self, room: int) -> np.ndarray:
        """bool [V]: the ids that may come next, never none: exactly the end-of-answer ids once the answer is
        complete. `room` is how many tokens the answer may still have, this one included. Raises RuntimeError
        where the grammar meets its limits."""
        place, mask = self._place, np.zeros(self._lexicon.size, dtype=bool)
        if place.ended:
            mask[self._lexicon.eos] = True
            return mask
        accepting = self._core.is_accepting()
        if not (accepting and self._core.is_stopped()):
            bits = np.frombuffer(self._core.compute_bitmask(), dtype=np.uint8)
            mask = np.unpackbits(bits, count=self._lexicon.size, bitorder="little").view(bool)
        self._check()
        mask[self._lexicon.eos] = accepting
        if not mask.any():
            raise RuntimeError("the grammar allows no further token")
        way = self._scarce(place, room)
        if way is not None:
            return self._narrowed(mask, place, way, room)
        for token, length in self._lexicon.newlines.items():
            mask[token] |= length <= place.lead
        return mask

    def accept(self, token: int) -> None:
        """Take in a token that `allowed` named; after the end, none matters. Raises ValueError for one that
        the grammar does not allow."""
        place = self._place
        path = hash((place.path, token))
        following = replace(place, path=path, token=token)
        if place.ended or (token in self._lexicon.eos and self._core.is_accepting()):
            following = replace(following, ended=True)
        elif self._core.validate_tokens([token]) == 1:
            self._core.consume_token(token)
            self._check()
            state, opened = after(place.state, self._lexicon.tokens[token])
            following = Place(path, token, state, place.depth + opened)
        else:
            lead = place.lead - self._lexicon.newlines.get(token, place.lead + 1)
            if lead < 0:
                raise ValueError(f"token {token} is not allowed here by the grammar of the answer")
            following = replace(following, lead=lead)
        self._before, self._place = place, following

    def _check(self) -> None:
        if self._core.is_error():
            raise RuntimeError(f"the grammar cannot go on: {self._core.get_error().splitlines()[0]}")

    def _scarce(self, place: Place, room: int) -> tuple[int, ...] | None:
        """The way to the end, if the end is in reach, but not for long."""
        if room > self._far + self._reserve * (max(0, place.depth) + 1):
            return None
        if place.path not in self._ways:
            known = self._ways.get(self._before.path)
            if known and known[0] == place.token:
                known = known[1:]
            self._ways[place.path] = self._closing(self._core, place.state, room, known)
        way = self._ways[place.path]
        return way if way is not None and 0 <= room - 1 - len(way) <= self._reserve else None

    def _narrowed(self, mask: np.ndarray, place: Place, way: tuple[int, ...], room: int) -> np.ndarray:
        """Those of the mask from which the end can still be reached: the way itself, and what was tried."""
        lexicon = self._lexicon
        kept = np.zeros_like(mask)
        kept[lexicon.eos] = mask[lexicon.eos]
        if way:
            kept[way[0]] = True
        others = np.flatnonzero(mask & ~kept)
        others = others[lexicon.lengths[others] > 0]  # pieces of characters would need more pieces
        plain = others[lexicon.plain[others]]
        if len(plain) > _CANDIDATES and self._free(plain, way):
            others = others[~lexicon.plain[others]]
            kept[plain] = self._fits(self._shortest(plain), place, way, room)
        shortest = others[np.argsort(lexicon.lengths[others], kind="stable")]
        for token in shortest[:_CANDIDATES].tolist():
            kept[token] = self._fits(token, place, way, room)
        return kept

    def _free(self, plain: np.ndarray, way: tuple[int, ...]) -> bool:
        """Whether one of these tokens is as good as another: inside a text, where the same may follow any.
        What may follow a name depends on the name."""
        _, quote, rest = b"".join(self._lexicon.tokens[token] for token in way).partition(b'"')
        if quote and rest.lstrip().startswith(b":"):
            return False
        core = self._core.deep_copy()
        before = core.compute_bitmask()
        return core.consume_token(self._shortest(plain)) and core.compute_bitmask() == before

    def _shortest(self, ids: np.ndarray) -> int:
        return int(ids[self._lexicon.lengths[ids].argmin()])

    def _fits(self, token: int, place: Place, way: tuple[int, ...], room: int) -> bool:
        """Whether after `token` there is room left to end."""
        core = self._core.deep_copy()
        if room < 2 or not core.consume_token(token):
            return False
        state, _ = after(place.state, self._lexicon.tokens[token])
        return self._closing(core, state, room - 1, way, careful=False) is not None

    def _closing(
        self, core: LLMatcher, state: int, room: int, known: tuple[int, ...] | None, careful: bool = True
    ) -> tuple[int, ...] | None:
        """A way to the end that leaves room for the end-of-answer token: the one that was known before, if it
        is still one, since what was promised must be kept."""
        if known is not None and len(known) < room and leads(core, known):
            return known
        try:
            return closing(self._lexicon, core, state, room - 1, self._taste, careful=careful)
        except TooComplex:
            return None
