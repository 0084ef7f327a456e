"""The drivers of other engines: what stands in their lines when they are there, are not, or fail."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.make_checkpoint import make_checkpoint
from benchmarks.peers import llama, transformers_cpu, vllm_cpu
from benchmarks.peers.llama_server import LlamaServer
from benchmarks.peers.load import Load
from benchmarks.peers.process import run
from qnext.model.config import ModelConfig

from .test_make_checkpoint import TOY

SMALL = Load(prompts=(8,), contexts=(4,), batches=(2,), tokens=2, repeats=1, threads=1)
BENCH = """#!/bin/sh
case "$*" in
*"-n 0"*) echo '{"build_commit": "abc", "n_prompt": 8, "n_gen": 0, "n_depth": 0, "samples_ts": [3, 1, 2]}' ;;
*) echo '{"build_commit": "abc", "n_prompt": 0, "n_gen": 2, "n_depth": 4, "samples_ts": [5.04]}' ;;
esac
"""
BATCHED = """#!/bin/sh
echo some words
echo '{"pl": 2, "speed_tg": 7.0}'
echo too many tiles >&2
exit 3
"""


def program(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


def test_absent_peers_are_skipped(tmp_path: Path) -> None:
    assert "no such file" in llama.run(tmp_path / "a.gguf", tmp_path)["skipped"]
    assert llama.run(tmp_path / "a.gguf", None)["skipped"] == "no path given"
    assert "no such file" in vllm_cpu.run(tmp_path, tmp_path / "python")["skipped"]


def test_llama_figures_and_its_failure(tmp_path: Path) -> None:
    program(tmp_path / "llama-bench", BENCH)
    program(tmp_path / "llama-batched-bench", BATCHED)
    (tmp_path / "mid-Q4_0.gguf").touch()
    line = llama.run(tmp_path / "mid-Q4_0.gguf", tmp_path, SMALL)
    assert line["prefill"] == {"8": 2} and line["decode"] == {"4": 5.0} and line["batch"] == {"2": 7.0}
    assert line["batch_error"] == "exit 3: too many tiles"


def test_transformers_in_a_child(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, ModelConfig.from_dict(TOY))
    line = transformers_cpu.run(tmp_path, load=SMALL)
    assert line.keys() >= {"version", "prefill", "decode", "batch", "peak_rss_gib"}, line
    assert line["prefill"]["8"] > 0 and 0.1 < line["peak_rss_gib"] < 8


def test_a_peer_that_dies_says_how(tmp_path: Path) -> None:
    line = transformers_cpu.run(tmp_path, load=SMALL)  # an empty folder
    assert line["error"].startswith("exit 1: ")


def test_peak_memory_is_the_childs_own() -> None:
    held = bytearray(300 << 20)
    held[:: 1 << 12] = b"x" * len(held[:: 1 << 12])  # touched, so that the parent really holds it
    assert run(["sleep", "0.3"]).peak_rss_gib < 0.1


def test_a_server_that_ends_is_reported(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="does not start"), LlamaServer("/bin/false", tmp_path / "a.gguf"):
        pass
