"""Metrics as TensorBoard reads them are those of the file, over an interruption too."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from qnext.train.metrics import EVENTS, MetricsFile


def test_events_are_the_lines_of_the_file(tmp_path: Path) -> None:
    metrics = MetricsFile(tmp_path, tensorboard=True)
    metrics.cut(0)
    for step in range(10, 50, 10):
        metrics.add({"step": step, "nll": 5 / step, "tokens_per_second": 1234.5678})
        metrics.add({"step": step, "heldout_nll": 7 / step})
    # stopped after step 40, the last checkpoint was of step 20: 30 and 40 are taken again
    again = MetricsFile(tmp_path, tensorboard=True)
    again.cut(20)
    again.add({"step": 30, "nll": 0.3})
    events = EventAccumulator(str(tmp_path / EVENTS)).Reload()
    names = {name for line in again.read() for name in line} - {"step"}
    assert set(events.Tags()["scalars"]) == names == {"nll", "tokens_per_second", "heldout_nll"}
    for name in names:
        lines = [(line["step"], line[name]) for line in again.read() if name in line]
        assert len(lines) == (3 if name == "nll" else 2)
        found = events.Scalars(name)
        assert [each.step for each in found] == [step for step, _ in lines]
        assert [each.value for each in found] == pytest.approx([value for _, value in lines], rel=1e-6)


def test_without_the_package_the_recipe_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard.writer", raising=False)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    with pytest.raises(ValueError, match=r"tensorboard is true.*qnext\[tensorboard\]"):
        MetricsFile(tmp_path, tensorboard=True)
    MetricsFile(tmp_path).add({"step": 1, "nll": 2.0})
    assert not (tmp_path / EVENTS).exists()
