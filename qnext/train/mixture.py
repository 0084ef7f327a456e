"""Mixture: the data source of a training run, parts mixed by weight and packed into rows of one length.

Opened by the trainer with the `[data]` table of its recipe. Invariant: the row after N rows depends on the
spec, the tokenizer, the seed and N alone, whether or not the run was stopped in between, and whichever
process made the examples.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .ahead import Ahead
from .batch import Batch, Source
from .conversations import Example, load_chat
from .parts import DataSpec, Make, Part, open_parts

__all__ = ["DataSpec", "Part", "open_source"]
_WAITING = 8  # examples kept for the next row when they do not fit into this one
_DRAWS = 100  # until one is found that teaches something


def open_source(data_spec: DataSpec, tokenizer_dir: Path, seed: int) -> Source:
    """The source that a spec describes, at its beginning. Raises ValueError naming the part or file at
    fault."""
    pad = load_chat(tokenizer_dir, data_spec.template).tokenizer.control["<|endoftext|>"]
    if not data_spec.workers:
        makes = open_parts(data_spec, tokenizer_dir, seed)
        return _Mixture(data_spec, [_Stream(make) for make in makes], pad, lambda: None)
    ahead = Ahead(data_spec, tokenizer_dir, seed)
    streams = [_Stream(partial(ahead.example, part)) for part in range(len(data_spec.parts))]
    return _Mixture(data_spec, streams, pad, ahead.close)


class _Stream:
    """Examples by number: `make(count)` is a pure function, so the count is the whole state."""

    def __init__(self, make: Make) -> None:
        self._make = make
        self.count = 0

    def next(self) -> Example:
        self.count += 1
        return self._make(self.count - 1)


class _Mixture:
    """Draws from the part that is furthest behind its share and lays examples end to end in a row."""

    def __init__(self, spec: DataSpec, streams: list[_Stream], pad: int, close: Callable[[], None]) -> None:
        self._spec, self._streams, self._pad = spec, streams, pad
        self._served = [0] * len(streams)
        self._waiting: list[Example] = []
        self._close = close

    def next(self) -> Batch:
        space = self._spec.tokens_per_batch
        row: list[Example] = []
        for example in self._waiting:  # what did not fit before goes first; it fits, as the row is empty
            if len(example.ids) <= space:
                row.append(example)
                space -= len(example.ids)
        self._waiting = [example for example in self._waiting if all(example is not other for other in row)]
        while space and len(self._waiting) < _WAITING:
            example = self._draw()
            if len(example.ids) > space and example.cuttable:
                example = Example(example.ids[:space], example.weights[:space])
            if len(example.ids) <= space:
                row.append(example)
                space -= len(example.ids)
            else:
                self._waiting.append(example)
        if space:  # a document of padding, without weight, keeps every row at the same length
            row.append(Example([self._pad] * space, [0.0] * space))
        ids = np.concatenate([example.ids for example in row], dtype=np.int64, casting="unsafe")
        weights = np.concatenate([example.weights for example in row], dtype=np.float32, casting="unsafe")
        lengths = tuple(len(example.ids) for example in row)
        return Batch(torch.from_numpy(ids), torch.from_numpy(weights), lengths)

    def _draw(self) -> Example:
        parts = self._spec.parts
        behind = min(range(len(parts)), key=lambda i: self._served[i] / parts[i].weight)
        for _ in range(_DRAWS):
            example = self._cut(self._streams[behind].next())
            if np.any(example.weights):
                self._served[behind] += len(example.ids)
                return example
        raise ValueError(
            f"data part {behind + 1} ({parts[behind].kind}): {_DRAWS} conversations running have no answer "
            f"within data.max_length ({self._spec.max_length}) tokens: raise it"
        )

    def _cut(self, example: Example) -> Example:
        limit = self._spec.max_length
        if len(example.ids) <= limit:
            return example
        return Example(example.ids[:limit], example.weights[:limit], example.cuttable)

    def state_dict(self) -> dict[str, Any]:
        return {
            "counts": [stream.count for stream in self._streams],
            "served": list(self._served),
            "waiting": [
                (np.asarray(example.ids).tolist(), np.asarray(example.weights).tolist())
                for example in self._waiting
            ],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if len(state["counts"]) != len(self._streams):
            raise ValueError(
                f"the checkpoint was made with {len(state['counts'])} data parts, the recipe has "
                f"{len(self._streams)}: resume with the same [data] table"
            )
        for stream, count in zip(self._streams, state["counts"], strict=True):
            stream.count = count
        self._served = list(state["served"])
        self._waiting = [Example(list(ids), list(weights)) for ids, weights in state["waiting"]]

    def close(self) -> None:
        self._close()
