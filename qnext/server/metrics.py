"""Metrics: what the engines have done and hold, in Prometheus' text format.

Called by `app` for `GET /metrics`. Invariant: names follow Prometheus' customs (seconds, `_total`), each with
the model's name as its label; nothing about any one request or key is told.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import fields

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from qnext.engine.stats import Counters, Stats

_COUNTERS = {
    "steps": "forward steps",
    "step_seconds": "seconds spent in steps",
    "prompt_tokens": "prompt tokens of ended requests",
    "cached_tokens": "prompt tokens found in the prefix cache",
    "computed_tokens": "tokens computed, rejected guesses included",
    "generated_tokens": "tokens generated",
    "drafted_tokens": "tokens guessed ahead",
    "accepted_tokens": "guesses that were accepted",
    "preemptions": "sequences that gave way and were computed again",
    "failures": "requests that ended in an error",
    "queue_seconds": "seconds that ended requests waited",
    "prefill_seconds": "seconds from admission to the first token",
    "decode_seconds": "seconds from the first token to the last",
    "stopped": "requests that ended by themselves",
    "lengths": "requests that ended at a length limit",
    "aborted": "requests that were given up by their clients",
}
assert set(_COUNTERS) == {field.name for field in fields(Counters)}
_GAUGES = {
    "running": "sequences that are computed",
    "waiting": "requests that wait",
    "pages": "pages of cache memory",
    "pages_used": "pages in use by running sequences",
    "pages_kept": "pages that hold prefixes for later",
    "slots": "state slots",
    "slots_used": "state slots in use",
}


class _Collector:
    def __init__(self, stats: Iterable[tuple[str, Stats]]) -> None:
        self._stats = list(stats)

    def collect(self) -> Iterator[Metric]:
        for name, help_text in _COUNTERS.items():
            counter = CounterMetricFamily(f"qnext_{name}", help_text, labels=["model"])
            for model, stats in self._stats:
                counter.add_metric([model], getattr(stats.counters, name))
            yield counter
        evictions = CounterMetricFamily("qnext_evictions", "states dropped from memory", labels=["model"])
        for model, stats in self._stats:
            evictions.add_metric([model], stats.evictions)
        yield evictions
        for name, help_text in _GAUGES.items():
            gauge = GaugeMetricFamily(f"qnext_{name}", help_text, labels=["model"])
            for model, stats in self._stats:
                gauge.add_metric([model], getattr(stats, name))
            yield gauge


def render(stats: Iterable[tuple[str, Stats]]) -> bytes:
    """The page for (model's name, its engine's stats)."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(stats))
    return generate_latest(registry)
