"""What the engine itself costs: microseconds a step with a model that computes nothing.

    python benchmarks/overhead.py [steps]

Every answer writes one token a step. Prints one JSON line: microseconds of the engine's thread for one step,
from planning to handing out, for each kind of sampling and each batch: the median step of the least disturbed
of three runs. `greedy` picks the best score; `sampled` is what the published checkpoint recommends.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import time
from dataclasses import replace
from statistics import median

import torch
from torch import Tensor, nn

from qnext import EngineConfig, ModelConfig, SamplingParams
from qnext.engine.request import Request
from qnext.engine.sequence import Sequence
from qnext.engine.steps import Steps
from qnext.engine.stream import Stream, deliver

BATCHES = (1, 8, 64)
KINDS = {
    "greedy": SamplingParams(temperature=0, ignore_eos=True),
    "sampled": SamplingParams(temperature=0.7, top_k=20, top_p=0.8, ignore_eos=True),
}
VOCABULARY, LENGTH = 4096, 8192
PROMPT = tuple(range(1, 33))
WARM = 100  # steps before the clock counts


class Nothing(nn.Module):
    """A model of no layers' work: its hidden states are zeros and its scores are always the same."""

    mtp = None
    device, dtype, cache_dtype = torch.device("cpu"), torch.float32, torch.float32

    def __init__(self) -> None:
        super().__init__()
        self.config = ModelConfig(
            vocab_size=VOCABULARY,
            hidden_size=64,
            num_hidden_layers=4,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=16,
            linear_num_key_heads=1,
            linear_num_value_heads=2,
            linear_key_head_dim=16,
            linear_value_head_dim=16,
            num_experts=0,
            max_position_embeddings=LENGTH,
            mtp_layers=0,
        )
        self.embed_tokens = nn.Embedding(VOCABULARY, self.config.hidden_size)
        self.hidden = torch.zeros(4096, self.config.hidden_size)
        self.scores = torch.randn(max(BATCHES), VOCABULARY, generator=torch.Generator().manual_seed(1))

    def forward(self, ids_T: Tensor, packing: object, state: object, routing: object) -> Tensor:
        return self.hidden[: len(ids_T)]

    def logits(self, hidden_RH: Tensor) -> Tensor:
        return self.scores[: len(hidden_RH)]


@torch.inference_mode()  # as in the engine's thread
def step_microseconds(sampling: SamplingParams, batch: int, steps: int) -> float:
    """The median step in which all of a batch write, planning and handing out included."""
    config = EngineConfig(max_sequences=batch, draft_tokens=0, cache_bytes=1 << 28)
    made = Steps(Nothing().eval(), config, "")  # type: ignore[arg-type]
    wish = replace(sampling, max_tokens=steps + WARM, seed=1)
    streams = [Stream(Request(PROMPT, wish), lambda stream: None) for _ in range(batch)]
    for i, stream in enumerate(streams):
        made.scheduler.add(Sequence(stream, i, LENGTH, arrival=i))
    readers, seen = {stream: iter(stream) for stream in streams}, list[float]()
    for _ in range(WARM + steps):
        begun = time.perf_counter()
        told = made.step()
        deliver(told)
        seen.append(time.perf_counter() - begun)
        for stream, _ in told:
            next(readers[stream])
    return 1e6 * median(seen[WARM:])


def main() -> None:
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    head = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(head, capture_output=True, text=True).stdout.strip()
    torch.set_num_threads(1)
    found = {
        f"{kind}_{batch}": round(min(step_microseconds(sampling, batch, steps) for _ in range(3)), 1)
        for kind, sampling in KINDS.items()
        for batch in BATCHES
    }
    device = platform.processor() or platform.machine()
    print(json.dumps({"benchmark": "overhead", "device": device, "commit": commit, "microseconds": found}))


if __name__ == "__main__":
    main()
