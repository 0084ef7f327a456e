"""Runs every peer that is there on one checkpoint, a JSON line each.

    python -m benchmarks.peers CHECKPOINT [--only NAME …] [--llama PROGRAMS --gguf FILE …]
        [--vllm PYTHON --quantization int8_per_channel_weight_only --preload LIBRARIES]

Called by hand. The paths may also stand in the environment: QNEXT_LLAMA (the folder with llama-bench),
QNEXT_GGUF (files, separated by colons), QNEXT_VLLM (the Python of vLLM's environment), QNEXT_VLLM_PRELOAD.
QNEXT_BENCH_LOCK names a lock file by which measurements on shared cores take turns.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator
from typing import Any

from .. import roofline
from . import llama, transformers_cpu, vllm_cpu
from .load import Load
from .quiet import quiet

PEERS = ("roofline", "llama", "vllm", "transformers")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint")
    parser.add_argument("--only", nargs="+", choices=PEERS, default=PEERS)
    parser.add_argument("--llama", default=os.environ.get("QNEXT_LLAMA"))
    parser.add_argument("--gguf", nargs="*", default=os.environ.get("QNEXT_GGUF", "").split(":"))
    parser.add_argument("--vllm", default=os.environ.get("QNEXT_VLLM"))
    parser.add_argument("--quantization", nargs="*", default=["", "int8_per_channel_weight_only"])
    parser.add_argument("--preload", default=os.environ.get("QNEXT_VLLM_PRELOAD"))
    for name in ("prompts", "contexts", "batches"):
        parser.add_argument(f"--{name}", nargs="*", type=int, default=getattr(Load, name))
    for name in ("tokens", "repeats", "threads"):
        parser.add_argument(f"--{name}", type=int, default=getattr(Load, name))
    return parser.parse_args()


def lines(given: argparse.Namespace) -> Iterator[dict[str, Any]]:
    shape = {name: tuple(getattr(given, name)) for name in ("prompts", "contexts", "batches")}
    load = Load(**shape, tokens=given.tokens, repeats=given.repeats, threads=given.threads)
    if "roofline" in given.only:
        with quiet():
            yield roofline.measure(load.threads)
    if "llama" in given.only:
        for gguf in given.gguf:
            yield llama.run(gguf, given.llama, load)
    if "vllm" in given.only:
        for kind in given.quantization:
            yield vllm_cpu.run(
                given.checkpoint, given.vllm, load, quantization=kind or None, preload=given.preload
            )
    if "transformers" in given.only:
        yield transformers_cpu.run(given.checkpoint, load=load)


def main() -> None:
    for line in lines(arguments()):
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
