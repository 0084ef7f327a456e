"""How fast a packed checkpoint takes prompts in, and what a token costs as they grow.

    python benchmarks/prefill.py CHECKPOINT [--prompts 512 2048 4096 32768] [--chunk 2048] [--repeats 3]
        [--layers 48] [--activations exact] [--llama PROGRAMS --gguf FILE]

Prints one JSON line: tokens a second by length of prompt, in pieces of `--chunk` tokens as an engine cuts
them, beside the peak rate of products measured in the same run and llama.cpp on the same weights.
"""

from __future__ import annotations

import argparse
import json
from statistics import median
from typing import Any

import roofline
import torch
from peers import llama
from peers.load import Load
from peers.quiet import quiet
from stepper import Stepper, deepened, head, peak_rss_gib, settled

from qnext.model.network import Network
from qnext.model.packed_file import open_packed
from qnext.model.packed_network import PackedQwen3Next


def seconds(network: Network, prompt: int, chunk: int) -> float:
    """One prompt, from nothing to the scores after its last token."""
    stepper, total = Stepper(network, 1, 0, prompt), 0.0
    while stepper.context < prompt:
        with quiet():
            total += stepper.step(min(chunk, prompt - stepper.context))
    return total


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint")
    parser.add_argument("--prompts", type=int, nargs="+", default=[512, 2048, 4096, 32768])
    parser.add_argument("--chunk", type=int, default=2048)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--layers", type=int, help="as if it had so many: its own over and over")
    parser.add_argument("--activations", choices=("int8", "exact"), default="int8")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--llama", help="the folder with llama-bench")
    parser.add_argument("--gguf", nargs="*", default=[])
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    opened = open_packed(given.checkpoint)
    if given.layers:
        opened = deepened(opened, given.layers)
    network = PackedQwen3Next(opened.config, opened.parts, activations=given.activations)
    seconds(network, min(given.prompts), given.chunk)
    settled()
    line: dict[str, Any] = head("prefill", given.checkpoint, opened, given.activations, given.threads)
    with quiet():
        line["peaks"] = roofline.peaks(given.threads, 0.5)
    figures = {}
    for prompt in given.prompts:
        repeats = given.repeats if prompt < 10_000 else 1
        figures[prompt] = round(
            prompt / median(seconds(network, prompt, given.chunk) for _ in range(repeats)), 1
        )
    line |= {"tokens_s": figures, "peak_rss_gib": peak_rss_gib()}
    if given.llama:
        load = Load(tuple(p for p in given.prompts if p < 10_000), (), (), repeats=given.repeats)
        line["peers"] = [llama.run(file, given.llama, load) for file in given.gguf]
    print(json.dumps(line))


if __name__ == "__main__":
    main()
