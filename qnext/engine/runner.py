"""The runner: one forward over the pieces of a step. It owns the caches; the only place where engine
meets model.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qnext.model.packing import Packing
from qnext.model.qwen3_next import Qwen3Next
from qnext.model.state import State

from .scheduler import Piece


class Runner:
    """A model with caches for `pages` KV pages and `slots` sequences."""

    def __init__(self, model: Qwen3Next, pages: int, page_size: int, slots: int) -> None:
        weight = model.embed_tokens.weight
        self.model, self.page_size, self.device = model, page_size, weight.device
        self.state = State.allocate(
            model.config,
            pages=pages,
            page_size=page_size,
            slots=slots,
            dtype=weight.dtype,
            device=weight.device,
        )

    @torch.inference_mode()
    def run(self, pieces: list[Piece]) -> Tensor:
        """Take in the pieces -> scores [R, V] fp32 after the last token of those that are then complete."""
        ids: list[int] = []
        lengths, contexts, wanted = [], [], []
        for piece in pieces:
            sequence = piece.sequence
            assert sequence.slot is not None
            if sequence.computed == 0:
                self.state.clear(sequence.slot)
            ids += sequence.tokens[sequence.computed : sequence.computed + piece.length]
            lengths.append(piece.length)
            contexts.append(sequence.computed)
            if piece.length == sequence.pending:
                wanted.append(len(ids) - 1)
        packing = Packing.cached(
            lengths,
            contexts,
            [piece.sequence.pages for piece in pieces],
            [piece.sequence.slot for piece in pieces if piece.sequence.slot is not None],
            self.page_size,
            device=self.device,
        )
        hidden = self.model(torch.tensor(ids, device=self.device), packing, self.state)
        return self.model.logits(hidden[torch.tensor(wanted, dtype=torch.long, device=self.device)]).float()
