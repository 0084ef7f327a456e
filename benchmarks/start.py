"""How soon a packed checkpoint answers after Python starts, and how much memory it takes.

    python benchmarks/start.py CHECKPOINT [--starts 3] [--context 4096] [--chunk 2048] [--threads 2]

Prints one JSON line. Each start is a process of its own: seconds from its beginning to the imports, the
network and the first token (medians; the first start may have to read the file from the disk or to compile
kernels, and is told beside them). Then memory, in GiB, in the last of these processes: what must be there
(the files, keys, values and states) and the most that was, after imports, after a token at `--context`, and
after a prompt of that length in pieces of `--chunk` tokens.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

GIB = 2**30


def process_age() -> float:
    """Seconds since this process was made."""
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    return float(Path("/proc/uptime").read_text().split()[0]) - ticks / os.sysconf("SC_CLK_TCK")


def forget_peak() -> None:
    """Count the most memory from now on."""
    Path("/proc/self/clear_refs").write_text("5")


def peak() -> float:
    """GiB that were resident at most, since the peak was forgotten."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return round(int(status["VmHWM"].split()[0]) * 1024 / GIB, 3)


def start(given: argparse.Namespace) -> dict[str, Any]:
    """What one process finds, from its beginning on."""
    begun = time.time() - process_age()
    import torch
    from stepper import Stepper, head, settled

    from qnext.model.packed_file import open_packed
    from qnext.model.packed_network import PackedQwen3Next
    from qnext.model.state import StateSize

    line: dict[str, Any] = {"imports_s": time.time() - begun, "imports_gib": peak()}
    torch.set_num_threads(given.threads)
    opened = open_packed(given.checkpoint)
    network = PackedQwen3Next(opened.config, opened.parts)
    line["network_s"] = time.time() - begun
    Stepper(network, 1, 0, 8).step()
    line["first_token_s"] = time.time() - begun
    if not given.memory:
        return line
    settled()
    files = sum(file.stat().st_size for file in Path(given.checkpoint).glob("*.safetensors"))
    size = StateSize.of(opened.config, network.cache_dtype.itemsize, kept=4)
    line["needed_gib"] = (files + size.delta + given.context * size.kv_token) / GIB
    forget_peak()
    Stepper(network, 1, given.context, 8).seconds(4)
    line["decode_gib"] = peak()
    stepper = Stepper(network, 1, 0, given.context)
    while stepper.context < given.context:
        stepper.step(min(given.chunk, given.context - stepper.context))
    line["prompt_gib"] = peak()
    return head("start", given.checkpoint, opened, "int8", given.threads) | line


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint")
    parser.add_argument("--starts", type=int, default=3)
    parser.add_argument("--context", type=int, default=4096)
    parser.add_argument("--chunk", type=int, default=2048)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", action="store_true", help="one start, in this process")
    parser.add_argument("--memory", action="store_true", help="then its memory")
    given = parser.parse_args()
    if given.only:
        print(json.dumps(start(given)))
        return
    if given.starts < 1:
        parser.error(f"--starts is {given.starts}: give 1 or more")
    words, found = [sys.executable, *sys.argv, "--only"], []
    for i in range(given.starts + 1):
        last = ["--memory"] if i == given.starts else []
        done = subprocess.run([*words, *last], check=True, capture_output=True, text=True)
        found.append(json.loads(done.stdout.splitlines()[-1]))
    line = found[-1]
    for name in ("imports_s", "network_s", "first_token_s"):
        line[name] = round(median(each[name] for each in found[1:]), 2)
    line["first_start_s"] = round(found[0]["first_token_s"], 2)
    for name in ("decode", "prompt"):
        line[f"{name}_of_needed"] = round(line[f"{name}_gib"] / line["needed_gib"], 3)
    line["needed_gib"] = round(line["needed_gib"], 3)
    print(json.dumps(line))


if __name__ == "__main__":
    main()
