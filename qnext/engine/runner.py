"""The runner: one forward over the pieces of a step. It owns the caches; the only place where engine meets
model.

Called by `engine` and `drafting`. Invariant: it keeps no account of who owns what; plans say so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qnext.model.layers import Routing
from qnext.model.network import Network
from qnext.model.packing import Packing
from qnext.model.state import State, StateSize

from .plan import Clear, Move, Piece, Restore
from .sequence import Sequence


@dataclass(frozen=True, eq=False)
class Step:
    """What a forward gave: hidden states [T, H] and whether each is finite [T], and all are (`whole`); where
    each piece begins; and the experts [T, layers, k], if somebody asked."""

    hidden: Tensor
    sound: list[bool]
    whole: bool
    starts: list[int]
    experts: Any = None


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
        self.memory = self.state.pages.view(torch.uint8).flatten(1)  # pages as bytes
        sizes = model.cache_dtype.itemsize, model.dtype.itemsize
        self.state_bytes = StateSize.of(model.config, sizes[0], drafts, mtp=mtp, kept=sizes[1]).slot

    @torch.inference_mode()
    def move(self, move: Move) -> None:
        """Carry out one of a plan's moves (a `Fetch` is the engine's)."""
        match move:
            case Clear(slot):
                self.state.clear(slot)
            case Restore(slot, pages, copy):
                self.fill(slot, self.memory[self._index(pages)].flatten())
                if copy is not None:
                    self.memory[copy[1]] = self.memory[copy[0]]

    @torch.inference_mode()
    def fill(self, slot: int, content: Tensor) -> None:
        """Bring the bytes that `content_of` gave back to a slot."""
        at = 0
        for tensor in self.state.slotted:
            count = tensor[slot].numel() * tensor.element_size()
            if count:
                tensor[slot] = content[at : at + count].view(tensor.dtype).view(tensor[slot].shape)
            at += count

    @torch.inference_mode()
    def content_of(self, slot: int) -> Tensor:
        """Everything in a slot as bytes."""
        return torch.cat([each[slot].flatten().view(torch.uint8) for each in self.state.slotted])

    @torch.inference_mode()
    def store(self, slot: int, pages: list[int]) -> None:
        """Copy a slot's content to pages (`content_of`, padded)."""
        content = self.content_of(slot)
        room = content.new_empty(len(pages) * self.memory.shape[1])
        room[: len(content)] = content
        self.memory[self._index(pages)] = room.view(len(pages), -1)

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
        hidden = self.model(torch.from_numpy(np.asarray(ids)).to(self.device), packing, self.state, routing)
        if self.state.hidden is not None:
            for n, count, slot in saves:
                self.state.hidden[slot] = hidden[starts[n] + count - 1]
        experts = None
        if routing:
            experts = torch.stack([chosen for _, chosen in routing], 1).to(torch.int16).cpu().numpy()
        sound: list[bool] = hidden.isfinite().all(-1).tolist()
        return Step(hidden, sound, all(sound), starts, experts)

    @torch.inference_mode()
    def remember(self, slot: int, hidden_H: Tensor) -> None:
        """Put a last hidden state beside the other states of its slot, before they are stored."""
        assert self.state.hidden is not None
        self.state.hidden[slot] = hidden_H

    @torch.inference_mode()
    def recall(self, sequence: Sequence) -> None:
        """A sequence that was restored has its last hidden state in its slot: the MTP head has yet to see
        it, since the token that follows is new."""
        if self.state.hidden is not None:
            assert sequence.slot is not None
            sequence.last = self.state.hidden[sequence.slot].clone()
            sequence.unread = [sequence.last[None]]

    @torch.inference_mode()
    def scores(self, hidden_RH: Tensor) -> Tensor:
        """Scores [R, V] fp32 of the tokens that follow."""
        if self.alone:
            return torch.cat([self.model.logits(hidden_H[None]) for hidden_H in hidden_RH]).float()
        return self.model.logits(hidden_RH).float()

    @torch.inference_mode()
    def absorb(self, guessing: list[Sequence], others: list[Sequence]) -> Tensor | None:
        """Show the MTP head what it has not seen: hidden states, each with the token that followed -> its
        own hidden state after the last of each of `guessing` [N, H]; the rest it only reads."""
        everyone = [*guessing, *others]
        unread = [torch.cat(each.unread) for each in everyone]
        self._read(everyone, unread, [len(states) - (n < len(guessing)) for n, states in enumerate(unread)])
        out = None
        if guessing:
            last = torch.stack([states[-1] for states in unread[: len(guessing)]])
            tokens = [each.tokens[each.computed] for each in guessing]
            out = self._mtp(guessing, last, tokens, [each.computed for each in guessing])
        for each, states in zip(everyone, unread, strict=True):
            each.last, each.unread = states[-1].clone(), []
        return out

    def _read(self, sequences: list[Sequence], unread: list[Tensor], counts: list[int]) -> None:
        """Show the head so many of each sequence's unread states, the first ones."""
        some = [n for n, count in enumerate(counts) if count]
        if not some:
            return
        readers, lengths = [sequences[n] for n in some], [counts[n] for n in some]
        cells = [sequences[n].computed + 1 - len(unread[n]) for n in some]
        ids = [
            token
            for each, cell, length in zip(readers, cells, lengths, strict=True)
            for token in each.tokens[cell : cell + length]
        ]
        assert self.state.mtp is not None
        # The head's entry for token j lies in cell j, so that it depends on the tokens up to j alone: what
        # is shared is then right for all. There is no entry for the first token.
        packing = self._packing(readers, lengths, cells, first=1)
        hidden = torch.cat([unread[n][: counts[n]] for n in some])
        self.model.mtp_read(hidden, self._index(ids), packing, self.state.mtp)

    @torch.inference_mode()
    def look_further(
        self, sequences: list[Sequence], tokens: list[int], hidden_NH: Tensor, depth: int
    ) -> Tensor:
        """Show the MTP head its own guess, the `depth`-th, and its hidden state there -> its next [N, H]."""
        cells = [each.computed + depth for each in sequences]
        return self._mtp(sequences, hidden_NH, tokens, cells, own=True)

    def _mtp(
        self,
        sequences: list[Sequence],
        hidden_NH: Tensor,
        tokens: list[int],
        cells: list[int],
        *,
        own: bool = False,
    ) -> Tensor:
        """The head's answer to one token of each sequence."""
        packing = self._packing(sequences, [1] * len(tokens), cells, first=1)
        return self.model.mtp_hidden(hidden_NH, self._index(tokens), packing, self.state.mtp, own=own)

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

    def _index(self, pages: list[int] | tuple[int, ...]) -> Tensor:
        return torch.tensor(pages, dtype=torch.long, device=self.device)
