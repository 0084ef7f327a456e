"""The roofline: figures that can be true."""

from __future__ import annotations

from benchmarks import roofline


def test_bandwidth_and_peaks() -> None:
    roofline.SIZE, size = 64, roofline.SIZE
    try:
        found = roofline.measure(threads=1, gib=2**-6, seconds=0.01)
    finally:
        roofline.SIZE = size
    assert 0 < found["read_gb_s"] <= found["read_gb_s_max"]
    assert found["reader"] in ("numba", "torch", "streams") and found["f32_gop_s"] is not None


def test_rates_repeat_at_least_three_times() -> None:
    calls: list[int] = []
    assert len(roofline.rates(lambda: calls.append(1), 1.0, 0.0)) == 3
    assert len(calls) == 4
