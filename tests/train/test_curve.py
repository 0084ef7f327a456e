"""The loss curve: every point in its place, as text and as a page."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from qnext.train import curve
from qnext.train.metrics import MetricsFile

RUN = [{"step": 10.0 * i, "nll": 5.0 - 0.5 * i, "mtp_nll": 6.0 - 0.5 * i} for i in range(1, 8)]


def test_the_chart_puts_points_in_their_places() -> None:
    text = curve.chart(curve.read([*RUN, {"step": 70.0, "heldout_nll": 3.5}]), width=61, height=10)
    rows = [line[10:] for line in text.splitlines()[:10]]
    # losses 5.5 down to 1.5 in ten rows, steps 10 to 70 in 61 columns
    for line in RUN:
        row, column = round((5.5 - line["nll"]) / 4 * 9), round(line["step"] - 10)
        assert rows[row][column] == "*"
    assert rows[0][0] == "." and rows[round(2 / 4 * 9)][60] in "o."
    assert text.startswith("   5.500 |") and "   1.500 |" in text
    assert "* nll 1.500, o heldout_nll 3.500, . mtp_nll 2.500" in text


def test_one_report_is_a_curve_too() -> None:
    assert curve.chart(curve.read([{"step": 4.0, "nll": 2.0}])).count("*") == 2  # the point and the legend


def test_a_run_is_drawn_into_its_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no metrics yet: train the recipe first"):
        curve.draw(tmp_path, "toy")
    metrics = MetricsFile(tmp_path)
    for line in RUN:
        metrics.add(line)
    assert "nll 1.500" in curve.draw(tmp_path, "a <b> & c")
    page = (tmp_path / "curve.html").read_text()
    assert "<b>" not in page and "a &lt;b&gt; &amp; c" in page
    svg = re.search(r"<svg.*</svg>", page)
    assert svg is not None
    lines = [line.attrib["points"].split() for line in ElementTree.fromstring(svg[0])]
    assert [len(points) for points in lines] == [7, 7]
    assert lines[0][-1] == "800.0,400.0" and lines[1][0] == "0.0,0.0"


def test_right_answers_are_no_nats(tmp_path: Path) -> None:
    metrics = MetricsFile(tmp_path)
    for line in (
        {"step": 1.0, "pass_rate": 0.25},
        {"step": 2.0, "heldout_pass_rate": 0.5, "pass_rate": 0.75},
    ):
        metrics.add(line)
    chart = curve.draw(tmp_path, "sums")
    assert "step; share of right answers: * pass_rate 0.750, o heldout_pass_rate 0.500" in chart
    page = (tmp_path / "curve.html").read_text()
    assert "<p>Share of right answers, 0.250 to 0.750, over steps 1 to 2." in page
