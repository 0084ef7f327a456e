"""A second oracle: llama.cpp in float32 on the same weights, score by score.

    python benchmarks/oracle.py CHECKPOINT GGUF LLAMA_SERVER [--lengths 1 7 64 65 300 1000] [--top 20]

GGUF is the checkpoint in f32 (`benchmarks/peers/to_gguf.py`). For random prompts of each length both give
the log-probabilities of what may follow; printed is one JSON line with the largest difference over the
tokens that llama.cpp finds likeliest, for the reference network and for the packed one in exact mode, and how
often the best token is the same.
"""

from __future__ import annotations

import argparse
import json
import subprocess

import torch
from peers.llama_server import LlamaServer

from qnext.model.network import Network, load_network
from qnext.model.qwen3_next import Qwen3Next

OPTIONS = "-c 4096 -fa off -ctk f32 -ctv f32".split()  # else its keys and values are halved to 16 bits


@torch.inference_mode()
def scores(network: Network, ids: list[int]) -> torch.Tensor:
    """Log-probabilities [V] of what follows."""
    return network.logits(network(torch.tensor(ids))[-1:])[0].float().log_softmax(-1)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint")
    parser.add_argument("gguf")
    parser.add_argument("server")
    parser.add_argument("--lengths", type=int, nargs="+", default=[1, 7, 64, 65, 300, 1000])
    parser.add_argument("--top", type=int, default=20)
    given = parser.parse_args()
    networks: dict[str, Network] = {
        "reference": Qwen3Next.from_pretrained(given.checkpoint, dtype=torch.float32),
        "packed": load_network(given.checkpoint, dtype=torch.float32, activations="exact"),
    }
    worst, same = dict.fromkeys(networks, 0.0), dict.fromkeys(networks, 0)
    random = torch.Generator().manual_seed(0)
    with LlamaServer(given.server, given.gguf, *OPTIONS) as server:
        for length in given.lengths:
            ids = torch.randint(300, 3000, (length,), generator=random).tolist()
            theirs = server.likeliest(ids, given.top)
            for name, network in networks.items():
                ours = scores(network, ids)
                found = max(abs(float(ours[token]) - value) for token, value in theirs.items())
                worst[name] = max(worst[name], found)
                same[name] += int(ours.argmax()) == max(theirs, key=lambda token: theirs[token])
    head = ["git", "rev-parse", "--short", "HEAD"]
    line = {
        "benchmark": "oracle",
        "commit": subprocess.run(head, capture_output=True, text=True).stdout.strip(),
        "checkpoint": given.checkpoint,
        "lengths": given.lengths,
        "top": given.top,
        "largest_difference_nats": {name: float(f"{value:.3g}") for name, value in worst.items()},
        "same_best": {name: f"{count} of {len(given.lengths)}" for name, count in same.items()},
    }
    print(json.dumps(line))


if __name__ == "__main__":
    main()
