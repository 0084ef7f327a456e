"""The benchmark of stories: guesses are counted by depth, and both engines tell the same story."""

from __future__ import annotations

from benchmarks.stories import by_depth, measure, watched
from qnext import LLM, EngineConfig
from qnext.engine.pace import Pace


def test_guesses_are_counted_where_those_before_were_right() -> None:
    judged = [(3, 3), (3, 1), (3, 0), (1, 1), (2, 1)]
    assert by_depth(judged, 3) == [
        {"judged": 5, "right": 0.8},  # all but the third
        {"judged": 3, "right": 0.333},  # the first, second and last went on
        {"judged": 1, "right": 1.0},
    ]
    assert by_depth([], 1) == [{"judged": 0, "right": 0.0}]


def test_two_stories() -> None:
    original, caches = Pace.judged, {"max_sequences": 1, "cache_bytes": 1 << 26}
    with (
        LLM("tiny-instruct", engine=EngineConfig(draft_tokens=0, **caches)) as plain,
        LLM("tiny-instruct", engine=EngineConfig(draft_tokens=3, fixed_drafts=True, **caches)) as guessing,
        watched() as judged,
    ):
        found = measure(plain, guessing, judged, 0.7, 2)
    assert Pace.judged is original
    assert found["tokens"] > 20 and found["stories"] == 2  # type: ignore[operator]
    for ratio in (found["adaptive_over_plain"], found["adaptive_over_plain_cpu"]):
        assert 0 < ratio["lower"] <= ratio["median"] <= ratio["upper"]  # type: ignore[index]
    assert found["depth"][0]["judged"] > 5  # type: ignore[index]
