"""What rounding costs: the error of a model's scores and its perplexity under each scheme, against floats.

    python benchmarks/quantisation.py HELDOUT [CALIBRATION] [--model tiny-instruct] [--tokens N]

Both files are plain text or JSON lines with `text` or `messages`. Prints one JSON line a scheme: relative
error of the logits on the held-out text, its perplexity, and bytes of the packed matrices. Everything is
reckoned in float32 on the dequantised weights, so that rounding alone shows.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from qnext.kernels.packed import Packed
from qnext.model.conversion import pack_checkpoint
from qnext.model.packing import Packing
from qnext.model.qwen3_next import Qwen3Next
from qnext.model.scheme import Scheme
from qnext.models import locate
from qnext.text.samples import read_samples

SCHEMES = [Scheme("bfloat16"), Scheme("int8"), *(Scheme("int4", group) for group in (128, 64, 32))]


def scores(model: Qwen3Next, samples: list[list[int]]) -> tuple[Tensor, float]:
    """Logits of every token, and the perplexity of each from those before it."""
    ids = torch.tensor([token for sample in samples for token in sample])
    packing = Packing.of([len(sample) for sample in samples])
    with torch.inference_mode():
        logits = model.logits(model(ids, packing)).float()
    last = torch.tensor(
        [start + length - 1 for start, length in zip(packing.starts, packing.lengths, strict=True)]
    )
    seen = torch.ones(len(ids), dtype=torch.bool).index_fill_(0, last, False)
    loss = F.cross_entropy(logits[seen], ids.roll(-1)[seen])
    return logits, math.exp(float(loss))


def measure(
    path: Path, heldout: list[list[int]], texts: list[list[int]] | None
) -> Iterator[dict[str, object]]:
    exact, perplexity = scores(Qwen3Next.from_pretrained(path, dtype=torch.float32), heldout)
    yield {"scheme": "float32", "perplexity": round(perplexity, 4)}
    for scheme in SCHEMES:
        for calibration in (None, texts) if texts and scheme.kind == "int4" else (None,):
            config, parts = pack_checkpoint(path, scheme, texts=calibration)
            logits, perplexity = scores(Qwen3Next.from_packed(config, parts), heldout)
            yield {
                "scheme": scheme.describe(),
                "calibrated": calibration is not None,
                "logits_error": round(float((logits - exact).norm() / exact.norm()), 5),
                "perplexity": round(perplexity, 4),
                "bytes": sum(part.bytes for part in parts.values() if isinstance(part, Packed)),
            }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("heldout", type=Path)
    parser.add_argument("calibration", type=Path, nargs="?")
    parser.add_argument("--model", default="tiny-instruct")
    parser.add_argument("--tokens", type=int, default=8192)
    given = parser.parse_args()
    path = locate(given.model)
    heldout = read_samples(given.heldout, path, given.tokens)
    texts = read_samples(given.calibration, path, given.tokens) if given.calibration else None
    for line in measure(path, heldout, texts):
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
