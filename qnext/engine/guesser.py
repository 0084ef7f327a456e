"""The guesser: how many tokens to guess after a step, and the guesses, by the MTP head or from the text.

Called by `steps` after each forward. Invariant: while nothing is to be guessed for long, a step costs what it
would cost an engine that never guesses.
"""

from __future__ import annotations

from .config import EngineConfig
from .drafting import LookupDrafter, MTPDrafter
from .head import Head, Span
from .keeper import Keeper
from .pace import Pace
from .plan import Piece
from .rounds import Rounds
from .runner import Runner, Step
from .sequence import Sequence
from .stream import Stream

MOST = 0.75  # of the answers are to be guessed for, or what the round takes says nothing of guesses


class Guesser:
    """Guesses by the head, if there is one."""

    def __init__(self, runner: Runner, head: Head | None, keeper: Keeper, config: EngineConfig) -> None:
        self._head, self._keeper, self._may = head, keeper, config.drafts > 0
        self._mtp = MTPDrafter(runner, head) if head else None
        self._lookup = LookupDrafter()
        self._advanced: list[Span] = []  # what the step has computed
        self.rounds = Rounds(Pace(config.drafts, fixed=config.fixed_drafts))

    def begin(self, pieces: list[Piece]) -> None:
        """A step of these pieces is about to be made."""
        self._advanced = []
        if self._head is not None:
            for piece in pieces:
                if piece.sequence.restored:
                    self._head.recall(piece.sequence)

    def advanced(self, sequence: Sequence, start: int, count: int, right: int) -> None:
        """From a row on, the step's next `count` ones are the sequence's, with so many right guesses."""
        self.rounds.judged(sequence, right)
        self._advanced.append((sequence, sequence.unread, start, count, sequence.computed))

    def guess(self, pieces: list[Piece], step: Step, ended: dict[Stream, Sequence]) -> None:
        """Show the head what it must know by now, and leave guesses in sequences, where they may pay."""
        if not self._may or (not ended and self._rests(pieces, step)):
            return
        alive = [piece for piece in pieces if piece.sequence.slot is not None]
        going = [piece for piece in alive if piece.sequence.stream not in ended]
        guessing = [s for s in (p.sequence for p in going) if s.pending == 1 < s.room and not s.plain]
        count, hidden = self.rounds.choose(pieces, guessing), None
        if self._head is not None and self._advanced:
            self._head.note(step, self._advanced, unasked=bool(guessing) and not count)
        if self._head is not None and (count or not self._head.resting):
            able = self._head.able(guessing) if count else []
            if count and len(able) < MOST * len(guessing):
                self.rounds.forget()
            guessing = able
            due = self._keeper.unread([p for p in alive if p.sequence not in guessing], ended)
            hidden = self._head.absorb(guessing, due) if guessing or due else None
        for each in guessing if count else ():
            each.asked = count
        if self._mtp is None and count:
            self._lookup.draft(guessing, count)
        elif self._mtp is not None and count and hidden is not None:
            self._mtp.draft(guessing, count, hidden)

    def forget(self) -> None:
        """A step has failed: what it took says nothing."""
        self.rounds.forget()

    def _rests(self, pieces: list[Piece], step: Step) -> bool:
        """Whether nothing need be known for guesses: none are made now, nor soon."""
        last, count = pieces[-1], len(pieces)
        plain = step.starts[-1] + last.length + len(last.drafts) == count  # a row each
        resting = self._head is None or self._head.resting
        if not plain or not resting or not self.rounds.rest(count):
            return False
        if self._head is not None:
            self._head.note_newest(step, self._advanced)
        return True
