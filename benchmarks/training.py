"""Training beside `transformers` and its Trainer: the same shape, weights, tokens and precision, step by step
in turn.

    python -m benchmarks.training [--steps 7] [--threads 1] [--dtypes bfloat16 float32]
        [--documents mixed even] [--peers eager-padded grouped_mm-padded grouped_mm-flattened]
        [--allocators glibc jemalloc] [--device cpu] [--tokens 4096] [--warm-up 2]

The shape is that of the embedded models; a step has `tokens` random tokens, in documents of 60 to 400
tokens ("mixed") or of 256 ("even": a peer that pads has nothing to pad). One process measures one
allocator, precision and kind of documents; after each of a peer's steps come two of ours, without and with
the MTP loss, which the peer never has. A peer is an implementation of experts with a collation: "padded" is
right, "flattened" is faster and lets the delta rule run on from one document into the next, "bounded" does
not and needs flash-linear-attention. Both sides clip; the peer has AdamW (fused), we have Muon and AdamW.
jemalloc is preloaded, and keeps what is freed. With `--device cuda` (and `--allocators glibc`) both have
the kernels of flash-linear-attention where the library is installed and trusted, as a line says; it tunes
itself to each shape, so let it warm up for longer than there are different rows. Prints one JSON line a
peer: medians of seconds and tokens a second, and how many times as fast ours is.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes.util
import json
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

import torch

from qnext.kernels.cuda.fla_kernels import flash_linear_attention
from qnext.model.config import ModelConfig
from qnext.model.qwen3_next import Qwen3Next
from qnext.train.batch import Batch
from qnext.train.mixture import DataSpec, Part
from qnext.train.recipe import LossSettings, Recipe, Schedule
from qnext.train.supervised import Supervised
from qnext.train.trainer import Trainer

from .peers import process
from .peers.collations import COLLATIONS

TOKENIZER = process.ROOT / "qnext/models/tiny-base"
ROWS = 8  # different ones: what tunes itself to shapes has met them all after as many steps
PEERS = ("eager-padded", "grouped_mm-padded", "grouped_mm-flattened")
JEMALLOC = {"MALLOC_CONF": "dirty_decay_ms:-1,muzzy_decay_ms:-1"}


@dataclass(frozen=True)
class Load:
    """What is measured: `documents` is "mixed" or "even", `shape` fields of config.json."""

    shape: dict[str, Any]
    documents: str = "mixed"
    dtype: str = "bfloat16"
    tokens: int = 4096
    steps: int = 7
    threads: int = 1
    device: str = "cpu"
    warm_up: int = 2  # steps that are not counted

    def row(self, step: int) -> list[list[int]]:
        """The documents of a step."""
        random, lengths = Random(step % ROWS), list[int]()
        while sum(lengths) < self.tokens:
            length = random.randint(60, 400) if self.documents == "mixed" else 256
            lengths.append(min(length, self.tokens - sum(lengths)))
        return [[random.randrange(self.shape["vocab_size"]) for _ in range(length)] for length in lengths]


class Rows:
    """The same documents as a source of our trainer, made beforehand as the peer's are."""

    def __init__(self, load: Load, step: int = 0) -> None:
        self.step = step
        self.batches = [self._batch(load.row(number)) for number in range(ROWS)]

    def next(self) -> Batch:
        self.step += 1
        return self.batches[(self.step - 1) % ROWS]

    @staticmethod
    def _batch(documents: list[list[int]]) -> Batch:
        weights = torch.cat([(torch.arange(len(each)) > 0).float() for each in documents])
        return Batch(torch.tensor([*chain(*documents)]), weights, tuple(map(len, documents)))

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step = state["step"]


@dataclass
class Side:
    """Seconds of one side's steps, and of their forwards and backwards alone."""

    seconds: list[float] = field(default_factory=list)
    learning: list[float] = field(default_factory=list)

    def line(self, load: Load) -> dict[str, float]:
        kept = median(self.seconds[load.warm_up :])
        return {
            "tokens_per_second": round(load.tokens / kept, 1),
            "seconds": round(kept, 4),
            "optimiser_seconds": round(kept - median(self.learning[load.warm_up :]), 4),
        }


class Ours:
    """Our trainer on a checkpoint, with a weight of the MTP loss."""

    def __init__(self, checkpoint: Path, output: Path, load: Load, mtp: float) -> None:
        recipe = Recipe(
            name="ours",
            output=output,
            tokenizer=TOKENIZER,
            init=checkpoint,
            schedule=Schedule(steps=10**6),
            data=DataSpec((Part("chat", 1.0),), template="instruct"),  # read by nobody
            loss=LossSettings(mtp_start=mtp, mtp_end=mtp),
            dtype=load.dtype,  # type: ignore[arg-type]
            threads=load.threads,
            device=load.device,
        )
        self.trainer, self.side = Trainer(recipe), Side()
        assert isinstance(self.trainer.stage, Supervised)
        self.trainer.stage.source = Rows(load)
        self._step, self.trainer.optimizer.step = self.trainer.optimizer.step, self._noted  # type: ignore[method-assign]

    def step(self) -> None:
        torch.set_flush_denormal(True)  # as our trainer has it; the peer's has not
        self._begun = now()
        self.trainer._train_step()
        self.side.seconds.append(now() - self._begun)
        torch.set_flush_denormal(False)

    def _noted(self, lr_scale: float) -> float:
        self.side.learning.append(now() - self._begun)
        return self._step(lr_scale)


def now() -> float:
    """Seconds, when the device has done all that it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def peer(name: str, checkpoint: Path, output: Path, load: Load, ours: list[Ours]) -> Side:
    """Train with `transformers`; after each of its steps each of ours takes one."""
    import transformers

    experts, collation = name.split("-")
    side = Side()

    class Turns(transformers.TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.begun = now()

        def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
            side.learning.append(now() - self.begun)

        def on_step_end(self, *_: Any, **__: Any) -> None:
            side.seconds.append(now() - self.begun)
            for each in ours:
                each.step()

    arguments = transformers.TrainingArguments(
        output_dir=str(output),
        use_cpu=load.device == "cpu",
        bf16=load.dtype == "bfloat16",
        max_steps=load.steps + load.warm_up,
        per_device_train_batch_size=1,
        optim="adamw_torch_fused",
        learning_rate=1e-3,
        train_sampling_strategy="sequential",
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
    )
    model = transformers.Qwen3NextForCausalLM.from_pretrained(
        checkpoint, dtype=torch.float32, experts_implementation=experts
    )
    rows = [load.row(step) for step in range(load.steps + load.warm_up)]
    transformers.Trainer(
        model=model,
        args=arguments,
        train_dataset=rows,
        data_collator=COLLATIONS[collation],
        callbacks=[Turns()],
    ).train()
    return side


def measure(load: Load, peers: list[str]) -> list[dict[str, Any]]:
    """A line for each peer."""
    import transformers

    torch.set_num_threads(load.threads)
    kernels = load.device == "cuda" and flash_linear_attention() is not None
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "weights"
        torch.manual_seed(0)
        Qwen3Next(ModelConfig.from_dict(load.shape, mtp_layers=1)).save_pretrained(checkpoint)
        for name in peers:
            ours = [Ours(checkpoint, Path(folder) / f"{name}-{mtp}", load, mtp) for mtp in (0.0, 0.3)]
            torch.set_flush_denormal(False)
            other = peer(name, checkpoint, Path(folder) / name, load, ours).line(load)
            plain, with_mtp = (each.side.line(load) for each in ours)
            lines.append(
                {
                    "peer": name,
                    "transformers": transformers.__version__,
                    "flash_linear_attention": kernels,
                    "theirs": other,
                    "ours": plain,
                    "ours_with_mtp": with_mtp,
                    "ratio": round(other["seconds"] / plain["seconds"], 2),
                    "ratio_with_mtp": round(other["seconds"] / with_mtp["seconds"], 2),
                }
            )
    return lines


def embedded_shape() -> dict[str, Any]:
    """That of the embedded models."""
    config: dict[str, Any] = json.loads((TOKENIZER / "config.json").read_text(encoding="utf-8"))
    return config


def child(words: list[str]) -> None:
    documents, dtype, tokens, steps, threads, device, warm_up, *peers = words
    numbers = int(tokens), int(steps), int(threads)
    load = Load(embedded_shape(), documents, dtype, *numbers, device, int(warm_up))
    with contextlib.redirect_stdout(sys.stderr):  # the peer's Trainer prints its own
        lines = measure(load, peers)
    for line in lines:
        print(json.dumps(line))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--warm-up", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16", "float32"])
    parser.add_argument("--documents", nargs="+", default=["mixed", "even"])
    parser.add_argument("--peers", nargs="+", default=PEERS)
    parser.add_argument("--allocators", nargs="+", default=["glibc", "jemalloc"])
    given = parser.parse_args()
    library = ctypes.util.find_library("jemalloc")
    head = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(head, capture_output=True, text=True, cwd=process.ROOT).stdout.strip()
    device = platform.processor() or platform.machine()
    if given.device == "cuda":
        device = torch.cuda.get_device_name()
    common = {"benchmark": "training", "device": device, "commit": commit}
    for allocator in given.allocators:
        environment = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(given.threads)}
        if allocator == "jemalloc":
            if not library:
                print(json.dumps({**common, "allocator": allocator, "skipped": "jemalloc is not installed"}))
                continue
            environment |= {**JEMALLOC, "LD_PRELOAD": library}
        for dtype in given.dtypes:
            for documents in given.documents:
                words = [sys.executable, "-m", "benchmarks.training", "--child", documents, dtype]
                words += [str(given.tokens), str(given.steps), str(given.threads), given.device]
                words += [str(given.warm_up), *given.peers]
                ended = process.run(words, environment, timed=True)
                about = {**common, "allocator": allocator, "dtype": dtype, "documents": documents}
                about |= {"threads": given.threads, "steps": given.steps, "tokens": given.tokens}
                for line in ended.lines or [{"error": ended.complaint}]:
                    print(json.dumps({**about, **line}), flush=True)


if __name__ == "__main__":
    child(sys.argv[2:]) if sys.argv[1:2] == ["--child"] else main()
