"""How far trainer and engine are apart on the same tokens: log-probabilities in float32 and in bfloat16.

    python benchmarks/agreement.py [model]

A model in rounding of its own learns from answers that it would not quite have given: reinforcement learning
wants this gap small, and known. Prints one JSON line: for each kind of arithmetic the largest and the mean
difference of a token's log-probability in nats, and the share of tokens whose likeliest choice differs.
`model` is an embedded model's name or a checkpoint directory; the texts are drawn from it.
"""

from __future__ import annotations

import json
import platform
import sys
from pathlib import Path

import torch
from torch import Tensor

from qnext import EngineConfig, Qwen3Next, SamplingParams
from qnext.engine.engine import Engine
from qnext.engine.request import Output, Request
from qnext.model.network import load_network
from qnext.model.packing import Packing
from qnext.models import locate
from qnext.train.loss import log_probs

TEXTS, TOKENS = 8, 200
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def answers(path: Path, dtype: torch.dtype) -> list[Output]:
    """Sampled answers to a bare beginning, with what the engine says of each token."""
    network, config = load_network(path, dtype=dtype), EngineConfig(cache_bytes=256 << 20, draft_tokens=0)
    with Engine(network, config, checkpoint="agreement") as engine:
        streams = [
            engine.submit(
                Request(
                    (1 + seed,), SamplingParams(max_tokens=TOKENS, logprobs=1, seed=seed, ignore_eos=True)
                )
            )
            for seed in range(TEXTS)
        ]
        return [Output.joined(list(stream)) for stream in streams]


@torch.no_grad()
def gap(path: Path, name: str) -> dict[str, float]:
    """The differences in one kind of arithmetic; the trainer's weights are float32 in any."""
    model = Qwen3Next.from_pretrained(path, dtype=torch.float32)
    apart: list[Tensor] = []
    other_choices = 0
    for seed, output in enumerate(answers(path, DTYPES[name])):
        ids = torch.tensor((1 + seed, *output.token_ids))
        told = torch.tensor([report.logprob for report in output.logprobs])
        with torch.autocast("cpu", torch.bfloat16, enabled=name == "bfloat16"):
            found = log_probs(model, ids, (len(ids),))[1:]
            best = model.logits(model(ids, Packing.of((len(ids),)))).argmax(-1)[:-1]
        apart.append((found - told).abs())
        other_choices += sum(
            int(mine) != report.top[0][0] for mine, report in zip(best, output.logprobs, strict=True)
        )
    every = torch.cat(apart)
    return {
        "max_nats": round(float(every.max()), 6),
        "mean_nats": round(float(every.mean()), 7),
        "other_top_token": round(other_choices / len(every), 5),
    }


def main(model: str = "tiny-instruct") -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    path = locate(model)
    report = {name: gap(path, name) for name in DTYPES}
    print(json.dumps({"model": model, "tokens": TEXTS * TOKENS, **report, "machine": platform.machine()}))


if __name__ == "__main__":
    main(*sys.argv[1:])
