"""States that left the engine's memory, or outlived it, are found again; those that are lost are computed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qnext.engine import second_tier
from qnext.engine.config import EngineConfig
from qnext.engine.engine import Engine
from qnext.engine.plan import Fetch
from qnext.engine.request import Output, Request, SamplingParams
from qnext.model.qwen3_next import Qwen3Next

from .harness import MODEL, Watch, all_is_free, at_once, engine, greedy, request, taken_in, whole
from .programs import Oracle, Text
from .test_engine_invariance import YARN, wish

pytestmark = pytest.mark.usefixtures("poisoned_memory")


def ask(made: Engine, length: int, salt: str = "") -> Output:
    plain = request(length)
    output = whole(made.submit(Request(plain.prompt, plain.sampling, cache_salt=salt)))
    assert output.token_ids == greedy(length)[1]
    return output


def count_fetches(made: Engine) -> list[bool]:
    """Whether each fetch from now on brought something."""
    tier, found = made._steps.tier, list[bool]()
    assert tier is not None
    plain: Callable[[Fetch], bool] = tier.fetch

    def fetch(move: Fetch) -> bool:
        found.append(plain(move))
        return found[-1]

    tier.fetch = fetch  # type: ignore[method-assign]
    return found


@pytest.mark.parametrize("fields", [{}, {"draft_tokens": 0}, {"page_size": 3, "step_tokens": 20}], ids=str)
def test_a_restart_finds_what_lies_on_disk(fields: dict[str, Any], tmp_path: Path) -> None:
    with engine(disk_cache=tmp_path, **fields) as made:
        assert [ask(made, length).cached_tokens for length in (64, 33, 64)] == [0, 0, 63]
    with engine(disk_cache=tmp_path, **fields) as made:
        fetched = count_fetches(made)
        assert [ask(made, length).cached_tokens for length in (64, 33)] == [63, 32]
        assert fetched == [True, True]
        assert all_is_free(made)


def test_a_conversation_goes_on_after_a_restart(tmp_path: Path) -> None:
    prompt, answer = greedy(33)
    following = Request((*prompt, *answer, 5, 6, 7), SamplingParams(temperature=0, max_tokens=9))
    with engine() as made:
        wanted = whole(made.submit(following)).token_ids
    with engine(disk_cache=tmp_path, fixed_drafts=True) as made:
        ask(made, 33)
    with engine(disk_cache=tmp_path, fixed_drafts=True) as made:
        output = whole(made.submit(following))
        assert output.token_ids == wanted and output.cached_tokens == len(prompt) + len(answer) - 1


def test_accepted_guesses_survive_a_restart(tmp_path: Path) -> None:
    """A state that has yet to take in its last tokens says so on disk."""
    prompt, answer = greedy(33)
    following = Request((*prompt, *answer, 5, 6, 7), SamplingParams(temperature=0, max_tokens=9, logprobs=0))
    with engine() as made:
        wanted = whole(made.submit(following))
    with engine(disk_cache=tmp_path, fixed_drafts=True, draft_tokens=3) as made:
        oracle = Oracle(made, 1.0, 0)
        with at_once(made):
            stream = made.submit(request(33))
            oracle.answers[stream] = Text(prompt, answer, (), False)
        output = whole(stream)
        assert output.token_ids == answer and output.facts is not None and output.facts.accepted_tokens > 8
        assert made._steps.cache is not None
        kept, _ = made._steps.cache.find(("", False), following.prompt, 100)
        assert kept is not None and kept.replays > 0
    with engine(disk_cache=tmp_path, fixed_drafts=True, draft_tokens=3) as made:
        again = whole(made.submit(following))
        assert again.token_ids == wanted.token_ids and again.cached_tokens == kept.length
    for one, other in zip(again.logprobs, wanted.logprobs, strict=True):
        assert one.logprob == pytest.approx(other.logprob, abs=1e-4)


def test_host_memory_holds_what_was_evicted() -> None:
    with engine(host_cache_bytes=64 << 20, pages=60, max_sequences=2) as made:
        fetched = count_fetches(made)
        for length in (150, 140, 129, 128, 200):
            assert ask(made, length).cached_tokens == 0
        assert made.stats().evictions > 0 and not fetched
        for length in (150, 140, 129, 128, 200):
            assert ask(made, length).cached_tokens == length - 1
        assert fetched and all(fetched)
        assert all_is_free(made)


def spoil(folder: Path, choose: Callable[[list[Path]], list[Path]]) -> None:
    """Turn over a byte in some of the entries."""
    files = sorted(
        (path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size
    )
    entries = [path for path in files if path.stat().st_size > 1000]
    assert len(entries) >= 2
    for path in choose(entries):
        content = bytearray(path.read_bytes())
        content[-100] ^= 255
        path.write_bytes(content)


@pytest.mark.parametrize("which,cached", [("all", 0), ("gone", 0), (0, 60), (1, 30), (2, 0)])
def test_a_torn_entry_is_computed_anew(which: str | int, cached: int, tmp_path: Path) -> None:
    """Its chain: 30 tokens, 60, 89, and the whole; what lies before the torn one is still of use."""
    with engine(disk_cache=tmp_path) as made:
        wish = Request(greedy(90)[0], request(90).sampling, boundaries=(30, 60))
        assert whole(made.submit(wish)).token_ids == greedy(90)[1]
    with engine(disk_cache=tmp_path) as made:
        fetched, tier = count_fetches(made), made._steps.tier
        assert tier is not None
        texts = {key: len(text) for key, text in lying(made).items()}
        if which == "gone":
            for path in tmp_path.rglob("*"):
                if path.is_file() and path.stat().st_size > 1000:
                    path.unlink()
        elif which == "all":
            spoil(tmp_path, lambda entries: entries)
        else:
            torn = {89: 0, 60: 1, 30: 2}
            spoil(tmp_path, lambda entries: [path for path in entries if torn.get(texts[path.stem]) == which])
        output = ask(made, 90)
        assert output.cached_tokens == cached and False in fetched
        assert output.facts is not None and taken_in(output.facts) == 90 + len(greedy(90)[1]) - 1
        assert output.facts.queue_seconds >= 0 and output.facts.preemptions == 0
        assert ask(made, 90).cached_tokens == 89
        assert all_is_free(made)


def lying(made: Engine) -> dict[str, tuple[int, ...]]:
    """What the tree knows to lie in the second tier."""
    cache, found = made._steps.cache, dict[str, tuple[int, ...]]()
    assert cache is not None
    nodes = list(cache._roots.values())
    for node in nodes:
        nodes += node.children.values()
        found.update((each.key, cache.tokens(each)) for each in node.checkpoints.values() if each.key)
    return found


def test_several_at_once_may_find_that_it_is_gone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with engine(disk_cache=tmp_path) as made:
        ask(made, 64)
        ask(made, 17)
    with engine(disk_cache=tmp_path) as made:
        watch, fetched = Watch(made), count_fetches(made)
        spoil(tmp_path, lambda entries: entries)
        with at_once(made):
            streams = [made.submit(request(length)) for length in (64, 17, 64, 64, 17)]
        outputs = [whole(stream) for stream in streams]
        assert [each.token_ids for each in outputs] == [greedy(length)[1] for length in (64, 17, 64, 64, 17)]
        assert fetched and not any(fetched)
        assert "a step of" not in caplog.text
        assert all_is_free(made) and not watch.faults


def test_salts_are_apart_after_a_restart_too(tmp_path: Path) -> None:
    with engine(disk_cache=tmp_path) as made:
        ask(made, 64, "a")
    with engine(disk_cache=tmp_path) as made:
        assert [ask(made, 64, salt).cached_tokens for salt in ("b", "", "a")] == [0, 0, 63]


def test_stretched_states_are_apart_after_a_restart_too(tmp_path: Path) -> None:
    found = []
    for count in (10, 10, 50, 50):
        with engine(YARN, disk_cache=tmp_path) as made:
            found.append(whole(made.submit(wish(33, count))).cached_tokens)
    assert found == [0, 32, 0, 32]


def other_weights(tmp_path: Path) -> Engine:
    return Engine(MODEL, EngineConfig(cache_bytes=16 << 20, disk_cache=tmp_path), checkpoint="another")


def other_guesses(tmp_path: Path) -> Engine:
    return engine(disk_cache=tmp_path, draft_tokens=1)


@pytest.mark.parametrize("other", [other_weights, other_guesses])
def test_what_does_not_fit_is_not_found(other: Callable[[Path], Engine], tmp_path: Path) -> None:
    for make, cached in ((None, 0), (other, 0), (None, 63), (other, 63)):
        with engine(disk_cache=tmp_path) if make is None else make(tmp_path) as made:
            assert ask(made, 64).cached_tokens == cached


def test_what_was_laid_out_otherwise_is_not_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with engine(disk_cache=tmp_path) as made:
        ask(made, 64)
    with engine(disk_cache=tmp_path) as made:
        assert ask(made, 64).cached_tokens == 63
    monkeypatch.setattr(second_tier, "LAYOUT", second_tier.LAYOUT + 1)
    with engine(disk_cache=tmp_path) as made:
        assert ask(made, 64).cached_tokens == 0


def test_a_disk_needs_to_know_the_weights(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="disk_cache needs a checkpoint directory"):
        Engine(MODEL, EngineConfig(cache_bytes=16 << 20, disk_cache=tmp_path))


def test_a_checkpoint_directory_knows_its_weights(tmp_path: Path) -> None:
    MODEL.save_pretrained(tmp_path / "model")
    config = EngineConfig(cache_bytes=16 << 20, disk_cache=tmp_path / "cache")
    for cached in (0, 63):
        with Engine.from_pretrained(tmp_path / "model", config) as made:
            assert ask(made, 64).cached_tokens == cached
    assert isinstance(made._steps.runner.model, Qwen3Next)


@pytest.mark.parametrize("stride,least", [(16, 80), (48, 48), (2048, 0)])
def test_a_long_prompt_is_kept_every_so_often(stride: int, least: int) -> None:
    with engine(step_tokens=16, checkpoint_stride=stride) as made:
        ask(made, 200)
        prompt = (*greedy(200)[0][:100], 1, 2, 3)
        output = whole(made.submit(Request(prompt, SamplingParams(temperature=0, max_tokens=1))))
        assert least <= output.cached_tokens <= 100 and (output.cached_tokens > 0) == (least > 0)
        assert all_is_free(made)
