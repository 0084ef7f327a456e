"""The metrics page: every number of every engine, in a format that Prometheus' own parser reads."""

from __future__ import annotations

from dataclasses import fields

import httpx
from prometheus_client.parser import text_string_to_metric_families

from qnext.engine.stats import Counters, Stats
from qnext.server.metrics import render

from .conftest import Live


def samples(page: str) -> dict[tuple[str, str], float]:
    families = text_string_to_metric_families(page)
    return {(each.name, each.labels["model"]): each.value for family in families for each in family.samples}


def test_each_counter_and_gauge_of_each_model_is_told() -> None:
    counters = {field.name: float(10 + i) for i, field in enumerate(fields(Counters))}
    gauges = [field.name for field in fields(Stats) if field.name not in ("counters", "evictions")]
    values = {name: 100 + i for i, name in enumerate(gauges)}
    first = Stats(Counters(**counters), evictions=7, **values)  # type: ignore[arg-type]
    second = Stats(Counters(), evictions=0, **dict.fromkeys(gauges, 0))
    found = samples(render([("one", first), ("two", second)]).decode())
    for name, value in counters.items():
        assert found[f"qnext_{name}_total", "one"] == value and found[f"qnext_{name}_total", "two"] == 0
    for name in gauges:
        assert found[f"qnext_{name}", "one"] == values[name]
    assert found["qnext_evictions_total", "one"] == 7


def test_the_page_needs_no_key_and_counts(live: Live) -> None:
    before = samples(httpx.get(live.url + "/metrics").text)
    assert {name for name, _ in before} >= {"qnext_stopped_total", "qnext_pages_kept"}
    answer = httpx.get(live.url + "/metrics")
    assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/plain")
