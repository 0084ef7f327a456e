"""The memory that reading and writing a checkpoint takes, measured in a program of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from qnext.model.config import ModelConfig
from qnext.model.layout import layout
from qnext.model.shard import write_shard

from .checkpoints import SINGLE, random_tensors, tiny_config, write

BIG = {
    **tiny_config(),
    "vocab_size": 10_000,
    "hidden_size": 512,
    "head_dim": 128,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "num_experts": 16,
    "moe_intermediate_size": 256,
    "shared_expert_intermediate_size": 256,
}
MEASURE = """
import sys, torch
from qnext.model.qwen3_next import Qwen3Next

def peak():  # bytes; unlike ru_maxrss it starts afresh in a new program
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))

torch.set_num_threads(1)
tiny, big, copy, dtype = sys.argv[1:]
Qwen3Next.from_pretrained(tiny).save_pretrained(copy)
before = peak()
model = Qwen3Next.from_pretrained(big, dtype=getattr(torch, dtype))
size = sum(p.numel() * p.element_size() for p in model.parameters())
loaded = peak()
model.save_pretrained(copy)
print(size, loaded - before, peak() - loaded)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_peak_memory(tmp_path: Path, dtype: str) -> None:
    """Loading takes less than 1.2 times the weights at its peak, saving next to nothing."""
    entries = layout(ModelConfig.from_dict(BIG))

    def zeros() -> Iterator[Tensor]:
        return (torch.zeros(entry.shape, dtype=torch.bfloat16) for entry in entries)

    (tmp_path / "big").mkdir()
    (tmp_path / "big" / "config.json").write_text(json.dumps(BIG))
    write_shard(tmp_path / "big" / SINGLE, {e.name: (torch.bfloat16, e.shape) for e in entries}, zeros())
    tiny = write(tmp_path / "tiny", tiny_config(), random_tensors(tiny_config()))
    command = [sys.executable, "-c", MEASURE, *map(str, (tiny, tmp_path / "big", tmp_path / "copy", dtype))]
    size, loading, saving = map(int, subprocess.run(command, check=True, capture_output=True).stdout.split())
    assert size > 90e6
    assert 0.9 * size < loading < 1.2 * size
    assert saving < 0.1 * size
