"""Documents: where those of a row lie, as devices that dislike loops want to know it.

Asked by the ops that learn on CUDA and by the look-ahead of the loss. Invariant: a layout depends on the
lengths alone, and is made once for all layers of a step.

Legend: T tokens of the row, N documents, D of them in a group, L its padded length.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .rows import collect, spread

SHORTEST = 256  # padded length of the group of the shortest documents


class Documents(NamedTuple):
    """The documents of a row on a device.

    places [T]: tokens of its own document before each. bounds [N + 1] int64: where documents begin, and the
    end. groups: documents of similar length, each as row numbers [D, L]; past its end a document's last row
    is repeated. order [T]: where each token stands in the groups laid end to end.
    """

    places: Tensor
    bounds: Tensor
    groups: tuple[Tensor, ...]
    order: Tensor


class Chunks(NamedTuple):
    """Documents cut into chunks, each filled up to L rows, M in all: the first chunk of every document,
    those of many chunks first, then the second of those that have one, ...

    rows [M, L]: row numbers; past the end of a document T. counts: chunks of each turn. order [T]: where each
    token stands in the chunks laid end to end.
    """

    rows: Tensor
    counts: tuple[int, ...]
    order: Tensor


@lru_cache(maxsize=4)
@torch.inference_mode(False)
def documents(lengths: tuple[int, ...], device: torch.device) -> Documents:
    """The layout of documents of these lengths, end to end. It is computed on the device: small copies go
    there, and nothing waits for it."""
    sizes = torch.tensor(lengths, device=device)
    bounds = torch.tensor([0, *accumulate(lengths)], device=device)
    total = sum(lengths)
    starts = bounds[:-1]
    row = torch.arange(total, device=device)
    owners = torch.repeat_interleave(torch.arange(len(lengths), device=device), sizes, output_size=total)
    places = row - starts[owners]

    groups: list[Tensor] = []
    base, offsets = 0, [0] * len(lengths)  # of each document in the groups laid end to end
    for size, members in _by_size(lengths).items():
        chosen = torch.tensor(members, device=device)
        inside = torch.arange(size, device=device).minimum(sizes[chosen, None] - 1)
        groups.append(starts[chosen, None] + inside)
        for number, member in enumerate(members):
            offsets[member] = base + number * size
        base += len(members) * size
    order = torch.tensor(offsets, device=device)[owners] + places
    return Documents(places, bounds, tuple(groups), order)


@lru_cache(maxsize=4)
@torch.inference_mode(False)
def chunks(lengths: tuple[int, ...], device: torch.device, size: int) -> Chunks:
    """Documents of these lengths in chunks of `size`."""
    pieces = -(-np.array(lengths) // size)
    ranked = np.argsort(-pieces, kind="stable")
    counts = [int((pieces > turn).sum()) for turn in range(pieces.max())]
    owner = np.concatenate([ranked[:count] for count in counts])
    turn = np.repeat(np.arange(len(counts)), counts)
    begins = np.concatenate([[0], np.cumsum(lengths)])
    first, end = (
        torch.from_numpy(each).to(device) for each in (begins[owner] + turn * size, begins[owner + 1])
    )
    rows = first.unsqueeze(1) + torch.arange(size, device=device)
    inside = rows < end.unsqueeze(1)
    flat = torch.arange(rows.numel(), device=device)
    order = flat.new_zeros(sum(lengths) + 1).scatter_(
        0, torch.where(inside, rows, sum(lengths)).flatten(), flat
    )
    return Chunks(torch.where(inside, rows, sum(lengths)), tuple(counts), order[:-1])


def by_group(tensors: Sequence[Tensor], found: Documents, compute: Callable[..., Tensor]) -> Tensor:
    """What `compute` makes of [D, L, ...] of each tensor [T, ...], group by group, in the order of the row.

    It must be causal: what it says of a token may depend on earlier ones of its document alone.
    """
    sources, order = torch.cat([rows.flatten() for rows in found.groups]), found.order.unsqueeze(1)
    sizes = [rows.numel() for rows in found.groups]
    laid = [spread(each, sources, order).split(sizes) for each in tensors]
    outs = []
    for rows, *parts in zip(found.groups, *laid, strict=True):
        outs.append(compute(*(part.unflatten(0, rows.shape) for part in parts)).flatten(0, 1))
    return collect(torch.cat(outs), found.order)


def _by_size(lengths: tuple[int, ...]) -> dict[int, list[int]]:
    """Documents by the power of two that holds them."""
    sizes: dict[int, list[int]] = {}
    for number, length in enumerate(lengths):
        sizes.setdefault(max(SHORTEST, 1 << (length - 1).bit_length()), []).append(number)
    return sizes
