"""Ahead: worker processes change when examples are made, never which, and none outlives its source."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import qnext
from qnext.train.batch import Source
from qnext.train.conversations import Example
from qnext.train.mixture import DataSpec, Part, open_source
from qnext.train.worker import EXAMPLES, Block, Request

from .corpus import write_corpus
from .processes import end, start

TOKENIZER = Path(qnext.__file__).parent / "models" / "tiny-base"


@pytest.fixture
def spec(tmp_path: Path) -> DataSpec:
    """Parts of several kinds; short rows of some and many of others."""
    write_corpus(tmp_path)
    rows = [
        {"messages": [{"role": "user", "content": f"Say {i}"}, {"role": "assistant", "content": f"{i}!"}]}
        for i in range(50)
    ]
    (tmp_path / "said.jsonl").write_text("\n".join(map(json.dumps, rows)))
    parts = (
        Part("stories", 0.3, "train/tinystories_en_b.txt.zst"),
        Part("pairs", 0.05, "multilingual/tatoeba_eng_cmn.tsv.zst"),
        Part("conversations", 0.3, "said.jsonl"),
        Part("chat", 0.3, family="arithmetic"),
        Part("chat", 0.05, "train"),
    )
    return DataSpec(parts, str(tmp_path), 3000, 400, template="instruct", workers=2)


def opened(spec: DataSpec, **changes: int) -> Source:
    return open_source(replace(spec, **changes), TOKENIZER, 3)  # type: ignore[arg-type]


def assert_same_rows(one: Source, other: Source, count: int) -> None:
    for number in range(count):
        here, there = one.next(), other.next()
        assert torch.equal(here.ids, there.ids) and torch.equal(here.weights, there.weights), number
        assert (here.ids.dtype, here.weights.dtype) == (there.ids.dtype, there.weights.dtype)
        assert here.lengths == there.lengths


def running(process: int) -> bool:
    """Whether a process is there and is no zombie."""
    shown = subprocess.run(["ps", "-o", "stat=", "-p", str(process)], capture_output=True, text=True)
    return bool(shown.stdout.strip()) and not shown.stdout.strip().startswith("Z")


def test_rows_are_those_of_one_process_and_so_is_going_on(spec: DataSpec) -> None:
    """From either's state the other goes on, forwards and back; then no process is left."""
    before = set(multiprocessing.active_children())
    ahead, twin = opened(spec), opened(spec, workers=0)
    workers = set(multiprocessing.active_children()) - before
    assert len(workers) == 2
    for worker in workers:  # as a terminal and a machine that shuts down send to whole groups
        assert worker.pid
        os.kill(worker.pid, signal.SIGINT)
        os.kill(worker.pid, signal.SIGTERM)
    assert_same_rows(ahead, twin, 12)
    early = json.loads(json.dumps(ahead.state_dict()))
    assert early == json.loads(json.dumps(twin.state_dict()))
    assert early["counts"][2] > 2 * EXAMPLES, "blocks ended, and with them a pass over the file"
    assert_same_rows(ahead, twin, 12)
    ahead.load_state_dict(early)
    twin = opened(spec, workers=0)
    twin.load_state_dict(early)
    assert_same_rows(ahead, twin, 12)
    later = {**early, "counts": [count + 1000 for count in early["counts"]]}
    ahead.load_state_dict(later)
    twin.load_state_dict(later)
    assert_same_rows(ahead, twin, 4)

    processes = [worker.pid for worker in workers if worker.pid]
    ahead.close()
    assert not any(map(running, processes))
    ahead.close()


def test_what_a_worker_cannot_open_is_said_as_by_one_process(spec: DataSpec) -> None:
    path = Path(spec.root) / "said.jsonl"
    path.write_text(path.read_text() + "\n{broken")
    before = set(multiprocessing.active_children())
    messages = []
    for workers in (0, 2):
        with pytest.raises(ValueError, match=r"said\.jsonl, line 51: not JSON") as caught:
            opened(spec, workers=workers)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
    assert set(multiprocessing.active_children()) == before


def test_a_fault_is_met_at_its_example_and_no_earlier() -> None:
    def make(count: int) -> Example:
        if count == 2 * EXAMPLES + 5:
            raise ValueError("file, line 3: no good")
        return Example([count, 1], [0.0, 1.0], cuttable=count % 2 == 0)

    block = Block.made(make, Request(0, 2))
    for place in range(5):
        example = block.example(place)
        assert list(example.ids) == [2 * EXAMPLES + place, 1] and list(example.weights) == [0.0, 1.0]
        assert example.cuttable == (place % 2 == 0)
    with pytest.raises(ValueError, match="file, line 3: no good"):
        block.example(5)


def test_a_worker_that_is_killed_ends_the_run_with_a_message(spec: DataSpec) -> None:
    before = set(multiprocessing.active_children())
    source = opened(spec)
    (one, _) = set(multiprocessing.active_children()) - before
    source.next()
    one.kill()
    with pytest.raises(ValueError, match=r"a worker process of data\.workers has ended \(code -9\)"):
        for _ in range(1000):
            source.next()
    source.close()


def test_workers_end_with_a_process_that_is_killed(spec: DataSpec, tmp_path: Path) -> None:
    told = tmp_path / "workers"

    def train() -> None:
        source = opened(spec)
        source.next()
        children = " ".join(str(child.pid) for child in multiprocessing.active_children())
        told.with_suffix(".part").write_text(children)
        told.with_suffix(".part").rename(told)
        time.sleep(600)

    process = start(train)
    while not told.exists():
        assert end(process, 0.0) is None
        time.sleep(0.05)
    workers = list(map(int, told.read_text().split()))
    assert len(workers) >= 2 and all(map(running, workers))
    os.kill(process, signal.SIGKILL)
    assert end(process) == -signal.SIGKILL
    limit = time.monotonic() + 30
    while any(map(running, workers)):
        assert time.monotonic() < limit, "a worker goes on without anyone to work for"
        time.sleep(0.05)


def test_a_negative_number_of_workers_is_refused(spec: DataSpec) -> None:
    with pytest.raises(ValueError, match="workers is -1"):
        replace(spec, workers=-1)
