"""`transformers`' own Qwen3-Next, in a child process so that its memory is counted alone.

Called by the benchmarks with the Python that has it (by default the one that runs them).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from . import process
from .load import LOAD, Load
from .measured import figures


def run(
    checkpoint: str | Path,
    python: str | Path | None = sys.executable,
    load: Load = LOAD,
    *,
    dtype: str = "bfloat16",
) -> dict[str, Any]:
    """A line of figures."""
    head: dict[str, Any] = {"peer": "transformers", "weights": dtype}
    absent = process.missing(python, checkpoint)
    if absent:
        return {**head, "skipped": absent}
    environment = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(load.threads)}
    words = [str(python), "-m", "benchmarks.peers.transformers_cpu", str(checkpoint), load.to_json(), dtype]
    ended = process.run(words, environment)
    if ended.code or not ended.lines:
        return {**head, "error": ended.complaint}
    return {**head, **ended.lines[-1], "peak_rss_gib": ended.peak_rss_gib}


def child(checkpoint: str, load: Load, dtype: str) -> dict[str, Any]:
    """Runs beside nothing else."""
    import torch
    import transformers

    torch.set_num_threads(load.threads)
    model = transformers.Qwen3NextForCausalLM.from_pretrained(checkpoint, dtype=getattr(torch, dtype)).eval()

    @torch.inference_mode()
    def generate(prompts: list[list[int]], tokens: int) -> None:
        ids, cache = torch.tensor(prompts), None
        for _ in range(tokens):
            made = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
            ids, cache = made.logits[:, -1:].argmax(-1), made.past_key_values

    return {"version": transformers.__version__, **figures(generate, model.config.vocab_size, load)}


if __name__ == "__main__":
    print(json.dumps(child(sys.argv[1], Load.from_json(sys.argv[2]), sys.argv[3])))
