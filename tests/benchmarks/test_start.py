"""Starts and memory of a small packed checkpoint: figures that can be true."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.make_checkpoint import make_checkpoint
from qnext.model.config import ModelConfig
from qnext.model.conversion import convert
from qnext.model.scheme import Scheme

from .test_make_checkpoint import TOY

PROGRAM = Path(__file__).parents[2] / "benchmarks" / "start.py"


@pytest.mark.skipif(sys.platform != "linux", reason="it reads /proc")
def test_figures_of_two_starts(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "toy", ModelConfig.from_dict(TOY))
    convert(tmp_path / "toy", tmp_path / "packed", Scheme("int8", 32))
    words = [sys.executable, str(PROGRAM), str(tmp_path / "packed")]
    words += ["--starts", "1", "--context", "64", "--chunk", "32"]
    line = json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout)
    assert 0 < line["imports_s"] < line["network_s"] < line["first_token_s"] < 600
    files = (tmp_path / "packed" / "model.safetensors").stat().st_size / 2**30
    assert files < line["needed_gib"] + 1e-3 and 0 < line["imports_gib"] < line["decode_gib"]
    assert line["decode_gib"] <= line["prompt_gib"] < 4
    assert 1 < line["decode_of_needed"] <= line["prompt_of_needed"]
