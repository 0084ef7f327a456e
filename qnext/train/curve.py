"""The curve of a run, its losses or its share of right answers, as a chart for the terminal and as a page of
its own.

The command line draws it when a run ends, or from a run that goes on. Invariant: it reads the metrics file
alone, so that drawing never touches a run.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path

from .metrics import Metrics, MetricsFile

PAGE = "curve.html"
# What is drawn, in order, with its sign in the terminal and its colour on the page.
LINES = {
    "nll": ("*", "#1f77b4"),
    "heldout_nll": ("o", "#d62728"),
    "mtp_nll": (".", "#2ca02c"),
    "pass_rate": ("*", "#1f77b4"),
    "heldout_pass_rate": ("o", "#d62728"),
}

Points = list[tuple[float, float]]


def draw(output: Path, name: str) -> str:
    """Write `curve.html` into a run's output folder; returns the chart for the terminal.

    Raises ValueError when the run has not reported anything yet.
    """
    curves = read(MetricsFile(output).read())
    if not curves:
        raise ValueError(f"{output} has no metrics yet: train the recipe first")
    (output / PAGE).write_text(page(curves, name), encoding="utf-8")
    return chart(curves)


def read(lines: Sequence[Metrics]) -> dict[str, Points]:
    """Steps and losses of each curve that the metrics have."""
    curves = {kind: [(line["step"], line[kind]) for line in lines if kind in line] for kind in LINES}
    return {kind: points for kind, points in curves.items() if points}


def chart(curves: dict[str, Points], width: int = 72, height: int = 16) -> str:
    """Curves as text: losses upwards, steps to the right; the first curve lies on top."""
    left, right, low, high = _bounds(curves)
    cells = [[" "] * width for _ in range(height)]
    for kind in reversed(curves):
        for step, value in curves[kind]:
            column = round((step - left) / (right - left) * (width - 1))
            cells[round((high - value) / (high - low) * (height - 1))][column] = LINES[kind][0]
    marks = {0: high, height - 1: low}
    rows = [f"{marks[i]:8.3f} |" if i in marks else " " * 9 + "|" for i in range(height)]
    legend = ", ".join(f"{LINES[kind][0]} {kind} {points[-1][1]:.3f}" for kind, points in curves.items())
    steps = f"{left:<{width // 2}.0f}{right:>{width - width // 2}.0f}"
    return "\n".join(
        [row + "".join(line).rstrip() for row, line in zip(rows, cells, strict=True)]
        + [" " * 10 + steps, " " * 10 + f"step; {unit(curves)}: {legend}"]
    )


def page(curves: dict[str, Points], title: str, width: int = 800, height: int = 400) -> str:
    """A whole HTML page with the curves as SVG, which needs nothing from elsewhere."""
    left, right, low, high = _bounds(curves)
    shapes = []
    for kind, points in curves.items():
        places = " ".join(
            f"{(step - left) / (right - left) * width:.1f},{(high - value) / (high - low) * height:.1f}"
            for step, value in points
        )
        shapes.append(f'<polyline fill="none" stroke="{LINES[kind][1]}" points="{places}"/>')
    legend = " ".join(
        f'<span style="color:{LINES[kind][1]}">{kind} {points[-1][1]:.3f}</span>'
        for kind, points in curves.items()
    )
    return (
        f'<!doctype html><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f'<body style="font-family:sans-serif"><h1>{html.escape(title)}</h1>'
        f"<p>{unit(curves).capitalize()}, {low:.3f} to {high:.3f}, over steps {left:.0f} to {right:.0f}. "
        f"{legend}</p>"
        f'<svg viewBox="0 0 {width} {height}" width="{width}" style="border:1px solid #ccc">'
        f"{''.join(shapes)}</svg>\n"
    )


def unit(curves: dict[str, Points]) -> str:
    """What the curves of one run are measured in."""
    return "share of right answers" if "pass_rate" in curves else "nats per token"


def _bounds(curves: dict[str, Points]) -> tuple[float, float, float, float]:
    """First and last step, lowest and highest loss; never an empty span."""
    steps, values = zip(*(point for points in curves.values() for point in points), strict=True)
    left, right, low, high = min(steps), max(steps), min(values), max(values)
    return left, max(right, left + 1), low, max(high, low + 1e-3)
