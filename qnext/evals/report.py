"""The report: results as lines of a table for people, or as JSON lines for programs.

Used by `qnext eval`. Invariant: both show the same figures, and a missed gate says so.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict

from .result import Result

HEAD = (
    f"{'model':<16}{'gate':<28}{'value':>8}  {'95 % interval':<18}"
    f"{'count':>6}  {'limit':<10}{'seed':>5}  verdict"
)


def line(model: str, result: Result) -> str:
    """One line under HEAD."""
    number = _nats if result.is_loss else _percent
    between = f"{number(result.low)} to {number(result.high)}"
    limit = ("<= " if result.is_loss else ">= ") + number(result.limit)
    verdict = ("passed" if result.passed else "MISSED") + (f"  ({result.detail})" if result.detail else "")
    return (
        f"{model:<16}{result.gate:<28}{number(result.value):>8}  {between:<18}{result.count:>6}  {limit:<10}"
        f"{result.seed:>5}  {verdict}"
    )


def json_line(model: str, result: Result) -> str:
    """One JSON object; an interval that a single text cannot give is null."""
    row = {"model": model, **asdict(result), "passed": result.passed}
    known = {key: None if isinstance(x, float) and not math.isfinite(x) else x for key, x in row.items()}
    return json.dumps(known, allow_nan=False)


def _percent(value: float) -> str:
    return f"{value:.1%}"


def _nats(value: float) -> str:
    return f"{value:.3f}"
