"""The runner: one forward over the pieces of a step. It owns the caches; the only place where engine meets
model.

Called by `engine` and `drafting`. Invariant: it keeps no account of who owns what; plans say so.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from math import isfinite
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from qnext.model.layers import Routing
from qnext.model.network import Network
from qnext.model.packing import Packing
from qnext.model.state import State, StateSize

from .plan import Clear, Move, Piece, Restore
from .sequence import Sequence

WAITING = 1024  # hidden states that may wait for the MTP head: 8 MiB of the 80B's
SHORT = 64  # rows of a forward that may wait where they are
SOON = 8  # rows of a sequence that the head answers together with the newest, although only that is asked

Span = tuple[Sequence, int, int]  # a sequence's rows of a forward: where they start, and how many they are


@dataclass(frozen=True, eq=False)
class Step:
    """What a forward gave: hidden states [T, H] and whether each is finite [T], and all are (`whole`); where
    each piece begins; and the experts [T, layers, k], if somebody asked."""

    hidden: Tensor
    sound: list[bool]
    whole: bool
    starts: list[int]
    experts: Any = None


class Read(NamedTuple):
    """What the MTP head is shown: `length` hidden states, for its entries from a cell on."""

    sequence: Sequence
    cell: int
    length: int


class Runner:
    """A model with caches for `pages` KV pages and `slots` sequences with up to `drafts` guessed tokens.
    With `alone`, each piece has a forward of its own: what runs beside it does not change a bit."""

    def __init__(
        self, model: Network, pages: int, page_size: int, slots: int, drafts: int, *, alone: bool = False
    ) -> None:
        self.model, self.page_size, self.device, self.alone = model, page_size, model.device, alone
        mtp = drafts > 0 and model.mtp is not None
        self.state = State.allocate(
            model.config,
            pages=pages,
            page_size=page_size,
            slots=slots,
            dtype=model.cache_dtype,
            kept=model.dtype,
            device=model.device,
            drafts=drafts,
            mtp=mtp,
        )
        self._short = max(SHORT, slots)
        self.memory = self.state.pages.view(torch.uint8).flatten(1)  # pages as bytes
        self._way: Tensor | None = None
        sizes = model.cache_dtype.itemsize, model.dtype.itemsize
        self.state_bytes = StateSize.of(model.config, sizes[0], drafts, mtp=mtp, kept=sizes[1]).slot

    @torch.inference_mode()
    def move(self, move: Move) -> None:
        """Carry out one of a plan's moves (a `Fetch` is the engine's)."""
        match move:
            case Clear(slot):
                self.state.clear(slot)
            case Restore(slot, pages, copy):
                room = self._room(len(pages))
                torch.index_select(self.memory, 0, self._index(pages), out=room)
                self.fill(slot, room.flatten())
                if copy is not None:
                    self.memory[copy[1]] = self.memory[copy[0]]

    @torch.inference_mode()
    def fill(self, slot: int, content: Tensor) -> None:
        """Bring the bytes that `content_of` gave back to a slot."""
        at = 0
        for part in self._parts(slot):
            part.copy_(content[at : at + len(part)])
            at += len(part)

    @torch.inference_mode()
    def content_of(self, slot: int) -> Tensor:
        """Everything in a slot as bytes."""
        return torch.cat(self._parts(slot))

    @torch.inference_mode()
    def store(self, slot: int, pages: list[int]) -> None:
        """Copy a slot's content to pages (`content_of`, padded)."""
        room = self._room(len(pages))
        at, flat = 0, room.flatten()
        for part in self._parts(slot):
            flat[at : at + len(part)] = part
            at += len(part)
        self.memory[self._index(pages)] = room

    def _parts(self, slot: int) -> list[Tensor]:
        """The memory of a slot, as bytes."""
        return [each[slot].view(-1).view(torch.uint8) for each in self.state.slotted if each[slot].numel()]

    def _room(self, pages: int) -> Tensor:
        """Memory for so many pages on their way: always the same, since to touch new memory takes several
        times as long as to copy a state there."""
        if self._way is None or len(self._way) < pages:
            self._way = self.memory.new_empty(pages, self.memory.shape[1])
        return self._way[:pages]

    @torch.inference_mode()
    def run(self, pieces: list[Piece]) -> Step:
        """Take in the pieces. Nothing is committed but what the pieces say."""
        routed = any(piece.sequence.request.routed_experts for piece in pieces)
        if not self.alone or len(pieces) == 1:
            return self._forward(pieces, routed)
        steps = [self._forward([piece], routed) for piece in pieces]
        lengths = [len(step.hidden) for step in steps]
        return Step(
            torch.cat([step.hidden for step in steps]),
            [fine for step in steps for fine in step.sound],
            all(step.whole for step in steps),
            [sum(lengths[:n]) for n in range(len(lengths))],
            np.concatenate([step.experts for step in steps]) if routed else None,
        )

    def _forward(self, pieces: list[Piece], routed: bool) -> Step:
        ids: list[int] = []
        starts, saves = [], []
        for n, piece in enumerate(pieces):
            sequence = piece.sequence
            starts.append(len(ids))
            ids += sequence.tokens[sequence.computed : sequence.computed + piece.length]
            ids += piece.drafts
            saves += [(n, mark - sequence.computed, slot) for mark, slot in piece.saves]
        sequences = [piece.sequence for piece in pieces]
        packing = self._packing(
            sequences,
            [piece.length + len(piece.drafts) for piece in pieces],
            [each.computed for each in sequences],
            drafts=[len(piece.drafts) for piece in pieces],
            replays=[each.replays for each in sequences],
            saves=saves,
        )
        routing: Routing | None = [] if routed else None
        hidden = self.model(self._index(ids), packing, self.state, routing)
        if self.state.hidden is not None:
            for n, count, slot in saves:
                self.state.hidden[slot] = hidden[starts[n] + count - 1]
        experts = None
        if routing:
            experts = torch.stack([chosen for _, chosen in routing], 1).to(torch.int16).cpu().numpy()
        # A row's sum is finite where its numbers are: after the norm none is near the largest float.
        sound = list(map(isfinite, hidden.sum(-1, dtype=torch.float32).tolist()))
        return Step(hidden, sound, all(sound), starts, experts)

    @torch.inference_mode()
    def remember(self, sequence: Sequence) -> None:
        """Put its last hidden state beside the other states of its slot, before they are stored."""
        assert self.state.hidden is not None
        self.state.hidden[sequence.slot] = sequence.unread.newest[0]

    @torch.inference_mode()
    def recall(self, sequence: Sequence) -> None:
        """A sequence that was restored has its last hidden state in its slot: the MTP head has yet to see
        it, since the token that follows is new."""
        if self.state.hidden is not None:
            assert sequence.slot is not None
            sequence.unread.put(self.state.hidden[sequence.slot][None].clone(), 0, 1)

    @torch.inference_mode()
    def scores(self, hidden_RH: Tensor) -> Tensor:
        """Scores [R, V] fp32 of the tokens that follow."""
        if self.alone:
            return torch.cat([self.model.logits(hidden_H[None]) for hidden_H in hidden_RH]).float()
        return self.model.logits(hidden_RH).float()

    @torch.inference_mode()
    def note(self, hidden_TH: Tensor, spans: list[Span]) -> None:
        """Have what was computed wait for the MTP head. It reads at once where that is much."""
        room = WAITING // len(spans)
        full = len(hidden_TH) > self._short
        for sequence, start, count in spans:
            full = sequence.unread.put(hidden_TH, start, count) > room or full
        if full:
            self._read_waiting([], [sequence for sequence, _, _ in spans])

    @torch.inference_mode()
    def absorb(self, guessing: list[Sequence], others: list[Sequence]) -> Tensor | None:
        """Show the MTP head what waits: hidden states, each with the token that followed -> its own hidden
        state after the last of each of `guessing` [N, H]; the rest it only reads."""
        self._read_waiting(others, [each for each in guessing if each.unread.count > SOON])
        if not guessing:
            return None
        rows, reads = list[Tensor](), list[Read]()
        for each in guessing:
            length = each.unread.count
            rows += each.unread.read(newest=True)
            reads.append(Read(each, each.computed + 1 - length, length))
        hidden = self._mtp(torch.cat(rows), reads, _following(reads))
        if len(hidden) == len(reads):
            return hidden
        return hidden[self._index([end - 1 for end in accumulate(each.length for each in reads)])]

    def _read_waiting(self, whole: list[Sequence], but_newest: list[Sequence]) -> None:
        """Show the head what waits of these sequences, all of it or all but the newest row."""
        rows, reads = list[Tensor](), list[Read]()
        for wanted, newest in ((whole, True), (but_newest, False)):
            for each in wanted:
                length = each.unread.count - (not newest)
                cell = each.computed + 1 - each.unread.count
                rows += each.unread.read(newest=newest)
                if length:
                    reads.append(Read(each, cell, length))
        if reads:
            self._read(torch.cat(rows), reads)

    def _read(self, hidden_RH: Tensor, reads: list[Read]) -> None:
        """Show the head hidden states, one reader's after the other."""
        assert self.state.mtp is not None
        self.model.mtp_read(hidden_RH, self._index(_following(reads)), self._cells(reads), self.state.mtp)

    @torch.inference_mode()
    def look_further(
        self, sequences: list[Sequence], tokens: list[int], hidden_NH: Tensor, depth: int
    ) -> Tensor:
        """Show the MTP head its own guess, the `depth`-th, and its hidden state there -> its next [N, H]."""
        return self._mtp(
            hidden_NH, [Read(each, each.computed + depth, 1) for each in sequences], tokens, own=True
        )

    def _mtp(self, hidden_RH: Tensor, reads: list[Read], tokens: list[int], *, own: bool = False) -> Tensor:
        """The head's answers to hidden states and the tokens that follow them [R, H]."""
        return self.model.mtp_hidden(
            hidden_RH, self._index(tokens), self._cells(reads), self.state.mtp, own=own
        )

    def _cells(self, reads: list[Read]) -> Packing:
        # The head's entry for token j lies in cell j, so that it depends on the tokens up to j alone: what
        # is shared is then right for all. There is no entry for the first token.
        return self._packing(
            [each.sequence for each in reads],
            [each.length for each in reads],
            [each.cell for each in reads],
            first=1,
        )

    def _packing(
        self, sequences: list[Sequence], lengths: list[int], contexts: list[int], **more: Any
    ) -> Packing:
        stretched = None
        if self.model.config.rope_scaling is not None:
            stretched = [each.stretched for each in sequences]
        return Packing.cached(
            lengths,
            contexts,
            [each.pages for each in sequences],
            [each.slot or 0 for each in sequences],
            self.page_size,
            stretched=stretched,
            device=self.device,
            **more,
        )

    def _index(self, numbers: list[int] | tuple[int, ...]) -> Tensor:
        found = torch.from_numpy(np.array(numbers, np.int64))
        return found if self.device.type == "cpu" else found.to(self.device)


def _following(reads: list[Read]) -> list[int]:
    """The token that followed each hidden state."""
    return [token for each, cell, length in reads for token in each.tokens[cell : cell + length]]
