"""The model card: every figure is the recipe's, the network's or the run's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qnext.train.card import parameters, write_card
from qnext.train.mixture import DataSpec, Part
from qnext.train.recipe import Licence, Recipe, Schedule

from .toy import TABLE, VOCABULARY, toy_model

METRICS = {"tokens": 2_340_000.0, "seconds": 150.0, "nll": 2.71828, "mtp_acceptance": 0.625}


def card(tmp_path: Path, metrics: dict[str, float], heldout: float | None, **changes: Any) -> str:
    fields: dict[str, Any] = {
        "name": "toy",
        "description": "A toy.",
        "output": tmp_path,
        "tokenizer": tmp_path,
        "schedule": Schedule(77),
        "data": DataSpec((Part("chat", 1.0),)),
        "model": TABLE,
    }
    write_card(tmp_path / "README.md", Recipe(**{**fields, **changes}), toy_model(), metrics, heldout)
    return (tmp_path / "README.md").read_text(encoding="utf-8")


def test_it_states_the_run(tmp_path: Path) -> None:
    licences = (Licence("stories", "public domain", "a library"), Licence("sums", "Apache-2.0"))
    text = card(tmp_path, METRICS, 3.14159, licences=licences)
    for figure in ("# toy", "A toy.", "demonstration model", "77 steps from random weights", "2.34 M tokens",
                   "minutes on 1 cpu thread", "loss 2.718 nats", "held-out loss 3.142", "in 62% of cases",
                   "| stories | public domain | a library |", "| sums | Apache-2.0 |  |"):  # fmt: skip
        assert figure in text, figure


def test_what_was_not_measured_is_not_stated(tmp_path: Path) -> None:
    metrics = {key: value for key, value in METRICS.items() if key != "mtp_acceptance"}
    text = card(tmp_path, metrics, None, init=Path("some/base"), model={})
    assert "from the checkpoint `base`" in text
    assert "held-out" not in text and "drafted" not in text and "## Data" not in text
    assert "alone learned" not in text


def test_it_states_what_alone_learned(tmp_path: Path) -> None:
    text = card(tmp_path, METRICS, None, init=Path("some/base"), model={}, learn=("mtp.*",))
    assert "- these weights alone learned: `mtp.*`" in text


def test_parameters_counted_by_hand() -> None:
    model = toy_model(mtp_layers=0, num_hidden_layers=1, full_attention_interval=1)
    hidden, head, expert = 24, 8, 3 * 24 * 16
    attention = hidden * head * (2 + 2 + 1 + 1 + 2) + 2 * head
    rest = VOCABULARY * hidden + attention + 3 * hidden + 4 * hidden + hidden + expert
    assert parameters(model) == (rest + 4 * expert, rest + 2 * expert)
    whole, active = parameters(toy_model(num_hidden_layers=1, full_attention_interval=1))
    assert whole > rest + 4 * expert and active == rest + 2 * expert
