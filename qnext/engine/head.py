"""The MTP head at work: what it must still be shown, and its answers.

Told by `steps` of each forward, asked by `drafting`, in inference mode. While nothing is guessed, hidden
states wait: to keep them costs next to nothing. After a while the head rests: only the newest are kept, and
where guessing begins anew it sees no further back than these. Invariant: it never looks at a cell that holds
no entry of its own.
"""

from __future__ import annotations

from collections import deque
from collections.abc import MutableSequence
from itertools import accumulate, pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from qnext.model.packing import Packing

from .runner import Runner, Step
from .sequence import Sequence
from .sight import blank, fill
from .unread import Part, Unread

RECENT = 32  # forwards without guesses after which the head rests, and tokens that it then knows of a text:
# with 64, 32, 16 of tiny-instruct's stories 1, 1.5, 4 of a hundred guesses fewer are right than with all
WAITING = 1024  # hidden states that may wait for it besides: 8 MiB of the 80B's
SHORT = 64  # rows of a forward that may wait where they are
SOON = 8  # rows of a sequence that the head answers together with the newest, although only that is asked

# A sequence's rows of a forward: where they are to wait, where they start, how many they are, and how many
Span = tuple[Sequence, Unread, int, int, int]  # tokens are computed with them.


class Read(NamedTuple):
    """What the head is shown: `length` hidden states, for its entries from a cell on."""

    sequence: Sequence
    cell: int
    length: int


class Head:
    """The MTP head of a runner's model. `filled`: see `sight`."""

    def __init__(self, runner: Runner, filled: MutableSequence[int]) -> None:
        assert runner.state.mtp is not None and runner.state.hidden is not None
        self._runner, self._filled, self._size = runner, filled, runner.page_size
        self._entries, self._slots = runner.state.mtp, runner.state.hidden
        self._short = max(SHORT, len(self._slots))
        self._recent: deque[tuple[Tensor, list[Span]]] = deque()
        self._unasked = 0  # forwards since it was asked anything

    @property
    def resting(self) -> bool:
        return self._unasked >= RECENT

    def note(self, step: Step, spans: list[Span], *, unasked: bool = False) -> None:
        """Have what was computed wait; `unasked` tells that guesses could be made, and are not to be. Unless
        the head rests, it reads at once where that is much."""
        self._unasked += unasked
        hidden_TH, resting = step.hidden, self._unasked >= RECENT
        much = hidden_TH.shape[0] > self._short
        self._recent.append(_ends(hidden_TH, spans) if much and resting else (hidden_TH, spans))
        if resting and len(self._recent) > RECENT:
            self._recent.popleft()
        elif not resting and (much or len(self._recent) > RECENT):
            self._hand_out()
            self._read_waiting([], [span[0] for span in spans] if much else [])

    def note_newest(self, step: Step, spans: list[Span]) -> None:
        """The same while it rests and will not be asked for long: of the past nothing is kept."""
        self._recent.clear()
        self._recent.append((step.hidden, spans))

    def remember(self, sequence: Sequence) -> None:
        """Put its last hidden state beside the other states of its slot, before they are stored."""
        found = self._newest(sequence)
        self._slots[sequence.slot] = 0 if found is None else found

    def recall(self, sequence: Sequence) -> None:
        """A sequence that was restored has its last hidden state in its slot: the head has yet to see it,
        since the token that follows is new."""
        assert sequence.slot is not None
        sequence.unread.put(self._slots[sequence.slot][None].clone(), 0, 1, sequence.computed)
        sequence.restored = False

    def able(self, sequences: list[Sequence]) -> list[Sequence]:
        """Those of whose texts it knows enough to guess: all, unless it rested. It is awake from now on."""
        self._unasked = 0
        self._hand_out()
        return [each for each in sequences if self._blank(each) < each.computed]

    def absorb(self, guessing: list[Sequence], others: list[Sequence]) -> Tensor | None:
        """Show the head what waits: hidden states, each with the token that followed -> its own hidden state
        after the last of each of `guessing` [N, H], who must be able; the rest it only reads."""
        self._hand_out()
        long = [each for each in guessing if each.unread.count > SOON]
        if others or long:
            self._read_waiting(others, long)
        if not guessing:
            return None
        parts, reads = list[Part](), list[Read]()
        for each in guessing:
            self._take(each, parts, reads, newest=True)
        hidden = self._answer(self._rows(parts), reads, _following(reads))
        self._fill(reads)
        if len(hidden) == len(reads):
            return hidden
        return hidden[self._runner.index([end - 1 for end in accumulate(each.length for each in reads)])]

    def look_further(
        self, sequences: list[Sequence], tokens: list[int], hidden_NH: Tensor, depth: int
    ) -> Tensor:
        """Show the head its own guess, the `depth`-th, and its hidden state there -> its next [N, H]."""
        reads = [Read(each, each.computed + depth, 1) for each in sequences]
        return self._answer(hidden_NH, reads, tokens, own=True)

    def _hand_out(self) -> None:
        """Give each sequence what waits of it."""
        if not self._recent:
            return
        room = WAITING // len(self._recent[-1][1])
        full: dict[Sequence, None] = {}
        for hidden_TH, spans in self._recent:
            for sequence, unread, start, count, end in spans:
                if sequence.unread is unread:  # else it was begun anew since
                    if unread.put(hidden_TH, start, count, end):
                        sequence.blank = None
                    if unread.parts > room:
                        full[sequence] = None
        self._recent.clear()
        if full:
            self._read_waiting([], list(full))

    def _newest(self, sequence: Sequence) -> Tensor | None:
        """The last hidden state [H], if it is known."""
        for hidden_TH, spans in reversed(self._recent):
            for _, unread, start, count, _ in spans:
                if unread is sequence.unread:
                    return hidden_TH[start + count - 1]
        known = sequence.unread.known and sequence.unread.end == sequence.computed
        return sequence.unread.newest[0] if known else None

    def _read_waiting(self, whole: list[Sequence], but_newest: list[Sequence]) -> None:
        """Show the head what waits of these sequences, all of it or all but the newest row."""
        parts, reads = list[Part](), list[Read]()
        for wanted, newest in ((whole, True), (but_newest, False)):
            for each in wanted:
                self._take(each, parts, reads, newest=newest)
        if reads:
            following, rows = self._runner.index(_following(reads)), self._rows(parts)
            self._runner.model.mtp_read(rows, following, self._cells(reads), self._entries)
            self._fill(reads)

    def _rows(self, parts: list[Part]) -> Tensor:
        """These rows of forwards, one after the other [., H]; most often all are of the newest."""
        first, total = parts[0][0], sum(count for _, _, count in parts)
        if any(each is not first for each, _, _ in parts):
            return torch.cat([rows_TH[start : start + count] for rows_TH, start, count in parts])
        if total == len(first) and all(a[1] < b[1] for a, b in pairwise(parts)):
            return first
        return first[self._runner.index([row for _, at, count in parts for row in range(at, at + count)])]

    def _take(self, each: Sequence, parts: list[Part], reads: list[Read], *, newest: bool) -> None:
        """What waits of a sequence, as far as the head has use for it."""
        length, cell = each.unread.count - (not newest), each.computed + 1 - each.unread.count
        if not each.unread.count or each.unread.end != each.computed:
            return
        skip = max(0, min(start + 1 - cell, length)) if (start := self._blank(each)) else 0
        parts += each.unread.read(newest=newest, skip=skip)
        if length > skip:
            reads.append(Read(each, cell + skip, length - skip))

    def _blank(self, each: Sequence) -> int:
        """The cells of a text up to this one, a page's first, are not to be looked at."""
        if each.blank is None:
            first = each.computed + 1 - each.unread.count
            each.blank = blank(self._filled, each.pages, first, self._size)
        return each.blank

    def _fill(self, reads: list[Read]) -> None:
        for each, cell, length in reads:
            fill(self._filled, each.pages, cell, cell + length, self._size)

    def _answer(
        self, hidden_RH: Tensor, reads: list[Read], tokens: list[int], *, own: bool = False
    ) -> Tensor:
        """The head's answers to hidden states and the tokens that follow them [R, H]."""
        following = self._runner.index(tokens)
        return self._runner.model.mtp_hidden(hidden_RH, following, self._cells(reads), self._entries, own=own)

    def _cells(self, reads: list[Read]) -> Packing:
        # The head's entry for token j lies in cell j, so that it depends on the tokens up to j alone: what
        # is shared is then right for all. There is no entry in the first cell that it looks at.
        starts = [self._blank(each.sequence) for each in reads]
        return self._runner.packing(
            [each.sequence for each in reads],
            [each.length for each in reads],
            [each.cell for each in reads],
            first=1,
            skipped=starts if any(starts) else (),
        )


def _ends(hidden_TH: Tensor, spans: list[Span]) -> tuple[Tensor, list[Span]]:
    """A copy of the newest rows of each span."""
    parts, ends, total = list[Tensor](), list[Span](), 0
    for sequence, unread, start, count, end in spans:
        few = min(count, RECENT)
        parts.append(hidden_TH[start + count - few : start + count])
        ends.append((sequence, unread, total, few, end))
        total += few
    return torch.cat(parts), ends


def _following(reads: list[Read]) -> list[int]:
    """The token that followed each hidden state."""
    return [token for each, cell, length in reads for token in each.tokens[cell : cell + length]]
