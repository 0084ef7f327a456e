"""How a step's documents become the rows that a peer trains on.

Used by the driver of training. Invariant: each token of a step is learned once, what fills up a row never.
"""

from __future__ import annotations

import torch


def padded(batch: list[list[list[int]]]) -> dict[str, torch.Tensor]:
    """A step's documents as rows of one length."""
    (documents,) = batch
    longest = max(map(len, documents))
    ids = torch.tensor([each + [0] * (longest - len(each)) for each in documents])
    mask = torch.tensor([[1] * len(each) + [0] * (longest - len(each)) for each in documents])
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}


def flattened(batch: list[list[list[int]]], **options: bool) -> dict[str, torch.Tensor]:
    """A step's documents in one row, as `transformers` packs them."""
    from transformers import DataCollatorWithFlattening

    found: dict[str, torch.Tensor] = DataCollatorWithFlattening(**options)(
        [{"input_ids": each, "labels": each} for each in batch[0]]
    )
    return found


def bounded(batch: list[list[list[int]]]) -> dict[str, torch.Tensor]:
    """`flattened`, with the bounds by which flash-linear-attention (this needs it) keeps documents apart."""
    return flattened(batch, return_flash_attn_kwargs=True)


COLLATIONS = {"padded": padded, "flattened": flattened, "bounded": bounded}
