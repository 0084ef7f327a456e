"""vLLM's build for CPUs, in a virtual environment of its own.

Called with that environment's Python; the child half of this file runs there. `quantization` is one of vLLM's
names (`int8_per_channel_weight_only`: the routed experts as int8, made while loading), or None for bfloat16.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from . import process
from .load import LOAD, Load
from .measured import figures

# What it holds for keys, values and states; the rest of memory is the weights'.
CACHE_GIB = 1


def run(
    checkpoint: str | Path,
    python: str | Path | None,
    load: Load = LOAD,
    *,
    quantization: str | None = None,
    preload: str | None = None,
) -> dict[str, Any]:
    """A line of figures. `preload` is a colon-separated list of libraries, as in LD_PRELOAD."""
    config = Path(checkpoint, "config.json")
    head: dict[str, Any] = {"peer": "vllm-cpu", "weights": quantization or _stored(config)}
    absent = process.missing(python, config)
    if absent:
        return {**head, "skipped": absent}
    environment = {
        "VLLM_CPU_KVCACHE_SPACE": str(CACHE_GIB),
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": str(load.threads),
        **({"LD_PRELOAD": preload} if preload else {}),
    }
    words = [
        str(python),
        "-m",
        "benchmarks.peers.vllm_cpu",
        str(checkpoint),
        load.to_json(),
        quantization or "",
    ]
    ended = process.run(words, environment)
    if ended.code or not ended.lines:
        return {**head, "error": ended.complaint}
    return {**head, **ended.lines[-1], "peak_rss_gib": ended.peak_rss_gib}


def _stored(config: Path) -> str:
    """How the checkpoint itself stores its weights."""
    if not config.is_file():
        return "unknown"
    stated = json.loads(config.read_text()).get("quantization_config")
    return f"{stated['quant_method']}, {stated.get('format', '')}" if stated else "bf16"


def child(checkpoint: str, load: Load, quantization: str | None) -> dict[str, Any]:
    """Runs inside vLLM's environment."""
    import vllm

    longest = max([*load.prompts, *load.contexts]) + load.tokens + 1
    engine = vllm.LLM(
        model=checkpoint,
        dtype="bfloat16",
        quantization=quantization,
        enforce_eager=True,
        enable_prefix_caching=False,
        max_model_len=longest,
        max_num_batched_tokens=max(longest, 4352),
        max_num_seqs=max([1, *load.batches]),
        seed=0,
    )

    def generate(prompts: list[list[int]], tokens: int) -> None:
        wish = vllm.SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False)
        engine.generate([{"prompt_token_ids": ids} for ids in prompts], wish, use_tqdm=False)

    vocabulary = json.loads(Path(checkpoint, "config.json").read_text())["vocab_size"]
    return {"version": vllm.__version__, **figures(generate, vocabulary, load)}


if __name__ == "__main__":
    print(json.dumps(child(sys.argv[1], Load.from_json(sys.argv[2]), sys.argv[3] or None)))
