"""A network with caches, stepped by hand: what `decode` and `prefill` time, without an engine around it.

Invariant: every step is a whole one, from token ids to the best token of each sequence; contexts are of real
length, their caches full of noise, since speed does not depend on what is said.
"""

from __future__ import annotations

import resource
import subprocess
import threading
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import roofline
import torch

from qnext.engine.sampler import likeliest
from qnext.kernels.packed import Packed
from qnext.model.layers import Routing
from qnext.model.network import Network
from qnext.model.packed_file import PackedModel
from qnext.model.packing import Packing
from qnext.model.state import State, StateSize

PAGE = 16


class Stepper:
    """`count` sequences of `context` tokens, with room for `room` more each."""

    def __init__(self, network: Network, count: int, context: int, room: int) -> None:
        self.network, self.count, self.context = network, count, context
        each = -(-(context + room) // PAGE)
        self.pages = [list(range(n * each, (n + 1) * each)) for n in range(count)]
        self.state = State.allocate(
            network.config,
            pages=count * each,
            page_size=PAGE,
            slots=count,
            dtype=network.cache_dtype,
            kept=network.dtype,
        )
        self.state.pages.normal_(0, 0.5)
        for cache in self.state.delta:
            if cache is not None:
                cache.state.normal_(0, 0.01)

    @torch.inference_mode()
    def step(self, length: int = 1, routing: Routing | None = None) -> float:
        """`length` more tokens for every sequence -> seconds."""
        ids = torch.randint(0, self.network.config.vocab_size, (self.count * length,))
        begun = time.perf_counter()
        lengths, contexts = [length] * self.count, [self.context] * self.count
        packing = Packing.cached(lengths, contexts, self.pages, list(range(self.count)), PAGE)
        hidden = self.network(ids, packing, self.state, routing)
        likeliest(self.network.logits(hidden[length - 1 :: length]))
        self.context += length
        return time.perf_counter() - begun

    def seconds(self, tokens: int) -> float:
        """Median of steps of one token each, after a few that warm up."""
        for _ in range(4):
            self.step()
        return median(self.step() for _ in range(tokens))

    def moved(self, opened: PackedModel) -> int:
        """Bytes that such a step cannot do without: all weights but the embedding and those of experts that
        nobody chose, delta states there and back, keys and values of the contexts."""
        routing: Routing = []
        self.step(routing=routing)
        distinct = [len(chosen.unique()) for _, chosen in routing]
        total = 0.0
        for name, part in opened.parts.items():
            if isinstance(part, Packed) and not name.startswith("mtp."):
                share = 1.0
                if ".experts." in name:
                    sparse = [i for i in range(opened.config.num_hidden_layers) if opened.config.is_sparse(i)]
                    share = distinct[sparse.index(int(name.split(".")[1]))] / opened.config.num_experts
                total += part.bytes * share
        size = StateSize.of(opened.config, self.network.cache_dtype.itemsize, kept=4)
        return round(total + self.count * (2 * size.delta + self.context * size.kv_token))


def deepened(opened: PackedModel, layers: int) -> PackedModel:
    """As if it had so many layers: its own over and over. What a token costs in a network that does not fit
    is told by one of the same shapes that does, as long as its layers are larger than the caches."""
    kinds = opened.config.layer_types
    if layers % len(kinds):
        raise ValueError(f"--layers is {layers}: give a multiple of the checkpoint's {len(kinds)}")
    parts = {name: part for name, part in opened.parts.items() if not name.startswith("layers.")}
    for i in range(layers):
        own = f"layers.{i % len(kinds)}."
        parts |= {
            f"layers.{i}." + name.removeprefix(own): part
            for name, part in opened.parts.items()
            if name.startswith(own)
        }
    config = replace(
        opened.config, num_hidden_layers=layers, layer_types=kinds * (layers // len(kinds)), mtp_layers=0
    )
    return opened._replace(config=config, parts=parts)


def settled() -> float:
    """Wait until weights lie where they are to stay (see `kernels.mapped`) -> seconds."""
    begun = time.perf_counter()
    for thread in threading.enumerate():
        if thread.name == "weights":
            thread.join()
    return time.perf_counter() - begun


def head(name: str, checkpoint: str, opened: PackedModel, activations: str, threads: int) -> dict[str, Any]:
    """What every line begins with."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True
    ).stdout.strip()
    return {
        "benchmark": name,
        "device": roofline.processor(),
        "commit": commit,
        "checkpoint": Path(checkpoint).name,
        "layers": opened.config.num_hidden_layers,
        "weights": opened.scheme.describe(),
        "activations": activations,
        "threads": threads,
    }


def peak_rss_gib() -> float:
    """Of this process up to now. What a mapped file has in memory counts."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)
