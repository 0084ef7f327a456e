"""The runner: one forward over the pieces of a step. It owns the caches; the only place where engine meets
model.

Called by `steps`, `head` and `drafting`, in inference mode. Invariant: it keeps no account of who owns what;
plans say so.
"""

from __future__ import annotations

from collections.abc import Sequence as Row
from dataclasses import dataclass
from functools import cached_property
from math import isfinite
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
    """What a forward gave: hidden states [T, H]; where each piece begins; and the experts [T, layers, k], if
    somebody asked."""

    hidden: Tensor
    starts: list[int]
    experts: Any = None

    def is_finite(self, start: int, length: int) -> bool:
        """Whether so many hidden states are, from one on."""
        return all(self._finite[start : start + length])

    @cached_property
    def _finite(self) -> list[bool]:
        # A row's sum is finite where its numbers are: after the norm none is near the largest float.
        return list(map(isfinite, self.hidden.sum(-1, dtype=torch.float32).tolist()))


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
        self._words = self.memory.view(_widest(self.memory.shape[1]))
        self._way: Tensor | None = None
        sizes = model.cache_dtype.itemsize, model.dtype.itemsize
        self.state_bytes = StateSize.of(model.config, sizes[0], drafts, mtp=mtp, kept=sizes[1]).slot

    def move(self, move: Move) -> None:
        """Carry out one of a plan's moves (a `Fetch` is the engine's)."""
        match move:
            case Clear(slot):
                self.state.clear(slot)
            case Restore(slot, pages, copy, replays):
                room = self._room(len(pages))
                torch.index_select(self.memory, 0, self.index(pages), out=room)
                self.fill(slot, room.flatten(), replays)
                if copy is not None:
                    self.memory[copy[1]] = self.memory[copy[0]]

    def fill(self, slot: int, content: Tensor, replays: int = 1) -> None:
        """Bring the bytes that `content_of` or `store` gave back to a slot."""
        at = 0
        for part in self._parts(slot, replays):
            part.copy_(content[at : at + len(part)])
            at += len(part)

    def content_of(self, slot: int) -> Tensor:
        """Everything in a slot as bytes."""
        return torch.cat(self._parts(slot))

    def store(self, slot: int, pages: list[int], replays: int = 1) -> None:
        """Copy a slot's content to pages (`content_of`, padded), as far as it says anything with so many
        replays."""
        room = self._room(len(pages))
        at, flat = 0, room.flatten()
        for part in self._parts(slot, replays):
            flat[at : at + len(part)] = part
            at += len(part)
        self._words[self.index(pages)] = room.view(self._words.dtype)

    def _parts(self, slot: int, replays: int = 1) -> list[Tensor]:
        """The memory of a slot, as bytes."""
        tensors = self.state.slotted if replays else self.state.certain
        return [each[slot].view(-1).view(torch.uint8) for each in tensors if each[slot].numel()]

    def _room(self, pages: int) -> Tensor:
        """Memory for so many pages on their way: always the same, since to touch new memory takes several
        times as long as to copy a state there."""
        if self._way is None or len(self._way) < pages:
            self._way = self.memory.new_empty(pages, self.memory.shape[1])
        return self._way[:pages]

    def run(self, pieces: list[Piece]) -> Step:
        """Take in the pieces. Nothing is committed but what the pieces say."""
        assert torch.is_inference_mode_enabled()
        routed = any(piece.sequence.request.routed_experts for piece in pieces)
        if not self.alone or len(pieces) == 1:
            return self._forward(pieces, routed)
        steps = [self._forward([piece], routed) for piece in pieces]
        lengths = [len(step.hidden) for step in steps]
        return Step(
            torch.cat([step.hidden for step in steps]),
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
        packing = self.packing(
            sequences,
            [piece.length + len(piece.drafts) for piece in pieces],
            [each.computed for each in sequences],
            drafts=[len(piece.drafts) for piece in pieces],
            replays=[each.replays for each in sequences],
            saves=saves,
        )
        routing: Routing | None = [] if routed else None
        hidden = self.model(self.index(ids), packing, self.state, routing)
        if self.state.hidden is not None:
            for n, count, slot in saves:
                self.state.hidden[slot] = hidden[starts[n] + count - 1]
        experts = None
        if routing:
            experts = torch.stack([chosen for _, chosen in routing], 1).to(torch.int16).cpu().numpy()
        return Step(hidden, starts, experts)

    def scores(self, hidden_RH: Tensor) -> Tensor:
        """Scores [R, V] fp32 of the tokens that follow."""
        if self.alone:
            return torch.cat([self.model.logits(hidden_H[None]) for hidden_H in hidden_RH]).float()
        return self.model.logits(hidden_RH).float()

    def packing(
        self,
        sequences: list[Sequence],
        lengths: list[int],
        contexts: list[int],
        *,
        skipped: Row[int] = (),
        **more: Any,
    ) -> Packing:
        """Where new tokens after those of `contexts` lie. The cells of the first `skipped` ones, whole pages
        of them, are not looked at."""
        pages = [each.pages for each in sequences]
        if skipped:
            pages = [own[count // self.page_size :] for own, count in zip(pages, skipped, strict=True)]
            contexts = [context - count for context, count in zip(contexts, skipped, strict=True)]
        stretched = None
        if self.model.config.rope_scaling is not None:
            stretched = [each.stretched for each in sequences]
        return Packing.cached(
            lengths,
            contexts,
            pages,
            [each.slot or 0 for each in sequences],
            self.page_size,
            skipped=skipped,
            stretched=stretched,
            device=self.device,
            **more,
        )

    def index(self, numbers: Row[int]) -> Tensor:
        """Numbers as a tensor on the device."""
        found = torch.from_numpy(np.array(numbers, np.int64))
        return found if self.device.type == "cpu" else found.to(self.device)


def _widest(size: int) -> torch.dtype:
    """The largest words that so many bytes consist of: torch writes them no sooner if they are smaller."""
    return next(
        kind for kind in (torch.int64, torch.int32, torch.int16, torch.uint8) if size % kind.itemsize == 0
    )
