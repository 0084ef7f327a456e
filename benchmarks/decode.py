"""How fast a packed checkpoint decodes, and how near that is to the memory's bandwidth.

    python benchmarks/decode.py CHECKPOINT [--batches 1 4 8] [--contexts 128 4096] [--tokens 32]
        [--layers 48] [--activations exact] [--llama PROGRAMS --gguf FILE]

Prints one JSON line: tokens a second in total by batch and context, milliseconds of a step, bytes that it
must move, and their share of the bandwidth. That is another every second where memory is shared: it is read
before and after every few steps, and the share is the median of theirs. With llama.cpp's programs and a file
for it, their figures on the same weights in the same run.
"""

from __future__ import annotations

import argparse
import json
import time
from statistics import median, quantiles
from typing import Any

import roofline
import torch
from peers import llama
from peers.load import Load
from peers.quiet import quiet
from stepper import Stepper, deepened, head, peak_rss_gib, settled

from qnext.model.packed_file import open_packed
from qnext.model.packed_network import PackedQwen3Next

TURNS, WARM = 8, 2  # of reading and stepping, and steps of each that do not count


def in_turns(stepper: Stepper, stream: roofline.Stream, tokens: int) -> list[tuple[float, list[float]]]:
    """The bandwidth around some steps, and their seconds."""
    found, before = [], stream.read()
    for _ in range(TURNS):
        steps = [stepper.step() for _ in range(WARM + max(tokens // TURNS, 1))][WARM:]
        after = stream.read()
        found.append(((before + after) / 2, steps))
        before = after
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--contexts", type=int, nargs="+", default=[128, 4096])
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--layers", type=int, help="as if it had so many: its own over and over")
    parser.add_argument("--activations", choices=("int8", "exact"), default="int8")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--llama", help="the folder with llama-bench")
    parser.add_argument("--gguf", nargs="*", default=[])
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    begun = time.perf_counter()
    opened = open_packed(given.checkpoint)
    if given.layers:
        opened = deepened(opened, given.layers)
    network = PackedQwen3Next(opened.config, opened.parts, activations=given.activations)
    first = Stepper(network, 1, 0, 8)
    first.step()
    line = head("decode", given.checkpoint, opened, given.activations, given.threads)
    line["first_token_s"] = round(time.perf_counter() - begun, 2)
    line["settled_s"] = round(settled(), 2)
    figures: list[dict[str, Any]] = []
    stream = roofline.Stream(1.0, given.threads)
    for batch in given.batches:
        for context in given.contexts if batch == 1 else given.contexts[:1]:
            stepper = Stepper(network, batch, context, given.tokens + TURNS * WARM + 8)
            with quiet():
                turns = in_turns(stepper, stream, given.tokens)
            seconds, moved = median(each for turn in turns for each in turn[1]), stepper.moved(opened)
            shares = [moved / median(steps) / 1e9 / read for read, steps in turns]
            figures.append(
                {
                    "batch": batch,
                    "context": context,
                    "tokens_s": round(batch / seconds, 1),
                    "step_ms": round(seconds * 1e3, 2),
                    "mb_moved": round(moved / 1e6, 1),
                    "read_gb_s": round(median(read for read, _ in turns), 1),
                    "of_roofline": round(median(shares), 3),
                    "of_roofline_quartiles": [round(each, 3) for each in quantiles(shares)[::2]],
                }
            )
    line |= {"figures": figures, "peak_rss_gib": peak_rss_gib()}
    load = Load((), tuple(given.contexts), tuple(b for b in given.batches if b > 1), given.tokens)
    if given.llama:
        line["peers"] = [llama.run(file, given.llama, load) for file in given.gguf]
    print(json.dumps(line))


if __name__ == "__main__":
    main()
