"""CPU kernels alone, at the published shapes, against what the machine can do in the same run.

    python benchmarks/kernels.py delta|attention [--threads 2] [--seconds 1.0]

Prints one JSON line. `delta` is the half of a linear layer between its projections: the step at batch 1 over
the states of 36 layers, in GB/s of state read and written beside a plain copy's; and pieces of a prompt.
`attention` is that of a full layer over pages in disorder, of bf16 (rounded, exact) and of codes of 8 bits: a
token after 4,096 and 32,768 others, in GB/s of keys and values beside a plain reader's; and 2,048 tokens of a
prompt after none, 14,336 and 30,720 others, in GFLOP/s. A memory that others use too is only comparable
within one run, so steps and copies take turns, and readings come before and after.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from statistics import median

import numba
import numpy as np
import roofline
import torch

from qnext.kernels.cpu import isa
from qnext.kernels.cpu.attention import AttentionWeights, gated_attention
from qnext.kernels.cpu.delta_net import DeltaNetWeights, delta_net
from qnext.kernels.cpu.workspace import Workspace
from qnext.kernels.ops import SCALE, DeltaCache, stored_width
from qnext.model.packing import Arrays, Packing

SHAPE, PAGE, PIECE = (16, 2, 256, 32), 16, 2048  # query and key heads, width, rotary pairs
HEADS, TAPS, LAYERS = (16, 128, 32, 128), 4, 36
Numbers = dict[str, float | str]


def seconds_of(works: list[Callable[[], object]], seconds: float) -> list[float]:
    """Medians of some works that take turns."""
    found: list[list[float]] = [[] for _ in works]
    for work in works:
        work()
    until = time.perf_counter() + seconds
    while time.perf_counter() < until or len(found[0]) < 3:
        for work, times in zip(works, found, strict=True):
            begun = time.perf_counter()
            work()
            times.append(time.perf_counter() - begun)
    return [median(times) for times in found]


class DeltaLayer:
    """Random weights, caches of one sequence, and a row of inputs."""

    def __init__(self, tokens: int, workspace: Workspace) -> None:
        keys, key, values, value = HEADS
        channels = 2 * keys * key + values * value
        weights = (torch.randn(channels, TAPS), torch.rand(values), torch.ones(values), torch.randn(value))
        self.weights = DeltaNetWeights.of(*weights, 1e-6, *HEADS)
        self.conv = torch.zeros(1, TAPS - 1, channels, dtype=torch.bfloat16)
        empty = [
            torch.zeros(1, 0, n, width, dtype=torch.bfloat16) for n, width in ((keys, key), (values, value))
        ]
        state = torch.empty(1, values, key, value).normal_()
        self.cache = DeltaCache(state, empty[0], empty[1], torch.zeros(1, 0, 2, values))
        numbers = Arrays(np.arange(tokens), slots=np.zeros(1, np.int64))
        self.row = Packing((tokens,), (99,), numbers)
        self.inputs = torch.randn(tokens, channels + values * value), torch.randn(tokens, 2 * values)
        self.out, self.workspace = torch.empty(tokens, values * value), workspace

    def __call__(self) -> None:
        caches = self.conv, self.cache
        delta_net(*self.inputs, self.weights, self.row, *caches, self.out, self.workspace, exact=False)


def delta(seconds: float) -> Numbers:
    workspace = Workspace()
    layers = [DeltaLayer(1, workspace) for _ in range(LAYERS)]
    source = torch.ones(2**26)
    target = torch.empty_like(source)

    def steps() -> None:
        for layer in layers:
            layer()

    step, copy = seconds_of([steps, lambda: target.copy_(source)], seconds)
    moved = 2 * sum(layer.cache.state.nbytes for layer in layers)
    found: Numbers = {
        "step_us": step / LAYERS * 1e6,
        "step_gb_s": moved / step / 1e9,
        "copy_gb_s": 2 * source.nbytes / copy / 1e9,
    }
    found["step_share"] = float(found["step_gb_s"]) / float(found["copy_gb_s"])
    for tokens in (512, 2048):
        (taken,) = seconds_of([DeltaLayer(tokens, workspace)], seconds)
        found[f"prompt_{tokens}_ms"] = taken * 1e3
    return found


class AttentionLayer:
    """Random keys and values of one sequence in some layers, and a row of inputs after them."""

    def __init__(self, tokens: int, context: int, layers: int, kind: str, workspace: Workspace) -> None:
        (queries, keys, width, half), dtype = SHAPE, torch.int8 if kind == "codes" else torch.bfloat16
        count = -(-(tokens + context) // PAGE)
        places = torch.randperm(count * layers).view(layers, count).tolist()
        memory = torch.zeros(count * layers, 2, PAGE, keys, stored_width(width, dtype), dtype=dtype)
        if dtype == torch.bfloat16:
            memory.normal_()
        self.cache = memory[:, 0], memory[:, 1]
        self.rows = [Packing.cached([tokens], [context], [pages], [0], PAGE) for pages in places]
        norms = torch.zeros(2, width)
        self.weights = AttentionWeights(norms[0], norms[1], 1e-6, queries, keys, width, width**-0.5)
        self.projected = torch.randn(tokens, 2 * (queries + keys) * width)
        self.rotary = torch.rand(tokens, half), torch.rand(tokens, half)
        self.out, self.workspace, self.exact = (
            torch.empty(tokens, queries * width),
            workspace,
            kind != "rounded",
        )

    def __call__(self) -> None:
        given = (self.weights, self.rows[0], self.rotary, self.cache, self.out)
        gated_attention(self.projected, *given, workspace=self.workspace, exact=self.exact)
        self.rows.append(self.rows.pop(0))


def attention(seconds: float) -> Numbers:
    workspace = Workspace()
    found: Numbers = {}

    def readable() -> float:
        return float(roofline.bandwidth(0.5, numba.get_num_threads(), 0.2)["read_gb_s"])

    for kind in ("rounded", "exact", "codes"):
        number = 1 + SCALE / SHAPE[2] if kind == "codes" else 2
        for context in (4096, 32768):
            layer = AttentionLayer(1, context, 2**18 // context, kind, workspace)
            before = readable()
            (step,) = seconds_of([layer], seconds)
            name, speed = f"{kind}_{context}", 2 * number * context * SHAPE[1] * SHAPE[2] / step / 1e9
            found |= {f"{name}_us": step * 1e6, f"{name}_gb_s": speed}
            found[f"{name}_share"] = 2 * speed / (before + readable())
        for context in (0, 14336, 30720):
            (taken,) = seconds_of([AttentionLayer(PIECE, context, 1, kind, workspace)], seconds)
            work = 4 * SHAPE[0] * SHAPE[2] * PIECE * (context + PIECE / 2)
            name = f"{kind}_prompt_{context}"
            found |= {f"{name}_ms": taken * 1e3, f"{name}_gflop_s": work / taken / 1e9}
    return found


CASES: dict[str, Callable[[float], Numbers]] = {"delta": delta, "attention": attention}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("case", choices=CASES)
    parser.add_argument("--threads", type=int, default=numba.get_num_threads())
    parser.add_argument("--seconds", type=float, default=1.0)
    options = parser.parse_args()
    numba.set_num_threads(options.threads)
    torch.set_num_threads(options.threads)
    numbers = {
        name: round(x, 3) if isinstance(x, float) else x
        for name, x in CASES[options.case](options.seconds).items()
    }
    print(json.dumps({"case": options.case, "level": isa.level(), "threads": options.threads, **numbers}))


if __name__ == "__main__":
    main()
