"""Worker: the process that makes examples for a trainer which is busy with its step, a block at a time.

`ahead` starts it and asks. Invariant: it owns nothing that lasts, so it may be ended at any moment, and
it ends by itself when the process that asks is gone.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from array import array
from itertools import accumulate
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Lock
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .conversations import Example
from .parts import DataSpec, Make, open_parts

EXAMPLES = 32  # of a block


class Request(NamedTuple):
    """Examples from number `block * EXAMPLES` on of the part with this index."""

    part: int
    block: int


class Block(NamedTuple):
    """A request's examples end to end: ids int32, weights float32, as bytes, which are quick to send.

    There are fewer where one could not be made; `fault` says why.
    """

    request: Request
    ids: bytes
    weights: bytes
    ends: list[int]  # of the examples, in tokens
    cuttable: list[bool]
    fault: str

    @classmethod
    def made(cls, make: Make, request: Request) -> Block:
        """What a part makes for a request."""
        examples: list[Example] = []
        fault = ""
        try:
            for number in range(request.block * EXAMPLES, (request.block + 1) * EXAMPLES):
                examples.append(make(number))
        except ValueError as error:
            fault = str(error)
        ids, weights = array("i"), array("f")
        for example in examples:
            ids.extend(example.ids)
            weights.extend(example.weights)
        ends = list(accumulate(len(example.ids) for example in examples))
        cuttable = [example.cuttable for example in examples]
        return cls(request, ids.tobytes(), weights.tobytes(), ends, cuttable, fault)

    def example(self, place: int) -> Example:
        """The example at a place from 0 to EXAMPLES - 1. Raises the ValueError of the one that could not be
        made."""
        if place >= len(self.ends):
            raise ValueError(self.fault)
        span = slice(self.ends[place - 1] if place else 0, self.ends[place])
        ids, weights = np.frombuffer(self.ids, np.int32), np.frombuffer(self.weights, np.float32)
        return Example(ids[span], weights[span], self.cuttable[place])


def work(
    requests: Connection, turn: Lock, replies: Connection, spec: DataSpec, tokenizer_dir: Path, seed: int
) -> None:
    """Open the parts, reply with what is wrong or "", and answer requests with blocks while anyone asks.

    requests: shared by all workers, each of which reads when it has its `turn`.
    """
    unsent: queue.SimpleQueue[Block] = queue.SimpleQueue()

    def send() -> None:  # beside the work, which else stood still while the trainer is at a step
        with contextlib.suppress(ConnectionError):
            while True:
                replies.send(unsent.get())

    with contextlib.suppress(EOFError, ConnectionError):
        try:
            makes = open_parts(spec, tokenizer_dir, seed)
        except ValueError as error:
            replies.send(str(error))
            return
        replies.send("")
        threading.Thread(target=send, daemon=True).start()
        while True:
            with turn:
                request = requests.recv()
            unsent.put(Block.made(makes[request.part], request))
