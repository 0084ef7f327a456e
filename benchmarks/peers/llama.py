"""llama.cpp's own benchmarks on a GGUF file: `llama-bench` and `llama-batched-bench`.

Called with the folder of its programs. Invariant: every figure is theirs, not one that we took of them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from . import process
from .load import LOAD, Load


def run(gguf: str | Path, programs: str | Path | None, load: Load = LOAD) -> dict[str, Any]:
    """A line of figures; `programs` is the folder with llama-bench and llama-batched-bench."""
    head: dict[str, Any] = {"peer": "llama.cpp", "weights": Path(gguf).stem}
    tools = [Path(programs or "", name) for name in ("llama-bench", "llama-batched-bench")]
    absent = process.missing(programs, *tools, gguf)
    if absent:
        return {**head, "skipped": absent}
    peaks, lines = [], []
    parts = [(load.prompts, ()), *(((), (context,)) for context in load.contexts)]
    for prompts, contexts in (part for part in parts if any(part)):
        words = [
            str(tools[0]),
            "-m",
            str(gguf),
            "-t",
            str(load.threads),
            "-r",
            str(load.repeats),
            "-o",
            "jsonl",
        ]
        if prompts:
            words += ["-p", ",".join(map(str, prompts)), "-n", "0"]
        else:
            words += ["-p", "0", "-n", str(load.tokens), "-d", str(contexts[0])]
        ended = process.run(words, timed=True)
        if ended.code:
            return {**head, "error": ended.complaint}
        lines += ended.lines
        peaks.append(ended.peak_rss_gib)
    found = {**head, **_figures(lines)}
    if load.batches:
        ended = process.run(_batched(tools[1], gguf, load), timed=True)
        speeds = {line["pl"]: line["speed_tg"] for line in ended.lines}
        found["batch"] = {str(n): round(speeds[n], 1) for n in load.batches if n in speeds}
        if ended.code:
            found["batch_error"] = ended.complaint
        peaks.append(ended.peak_rss_gib)
    return {**found, "peak_rss_gib": max(peaks)}


def _figures(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians by length of prompt and by context."""
    prefill, decode = {}, {}
    for line in lines:
        samples = sorted(line["samples_ts"])
        middle = round(samples[len(samples) // 2], 1)
        if line["n_prompt"]:
            prefill[str(line["n_prompt"])] = middle
        else:
            decode[str(line["n_depth"])] = middle
    return {"version": lines[0]["build_commit"], "prefill": prefill, "decode": decode}


def _batched(program: Path, gguf: str | Path, load: Load) -> list[str]:
    context, most = load.contexts[0], max(load.batches)
    words = [str(program), "-m", str(gguf), "-t", str(load.threads), "--output-format", "jsonl"]
    words += ["-npp", str(context), "-ntg", str(load.tokens), "-npl", ",".join(map(str, load.batches))]
    return [*words, "-c", str(most * (context + load.tokens) * 2)]
