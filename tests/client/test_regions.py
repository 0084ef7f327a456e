"""Regions: taken in turn, the next one when one fails."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from dashscope import Generation

from qnext.client import Region, Regions

from ..server.conftest import Live

NAMES = ("sg", "us", "bj")


class World:
    """Servers that answer with a status, or break."""

    def __init__(self, **outcomes: Any) -> None:
        self.outcomes, self.asked = outcomes, list[tuple[str, str, Any]]()

    def call(self, model: str, *, base_address: str, api_key: str, prompt: str) -> Any:
        self.asked.append((base_address, api_key, (model, prompt)))
        outcome = self.outcomes.get(base_address, 200)
        if isinstance(outcome, Exception):
            raise outcome
        return SimpleNamespace(status_code=outcome, where=base_address)


def regions() -> Regions:
    return Regions([Region(name, f"key of {name}", name) for name in NAMES])


def test_in_turn_each_with_its_key() -> None:
    world, three = World(), regions()
    found = [three.call(world.call, "m", prompt="Hi").where for _ in range(5)]
    assert found == ["sg", "us", "bj", "sg", "us"]
    assert world.asked[1] == ("us", "key of us", ("m", "Hi"))


@pytest.mark.parametrize("failure", [503, 429, ConnectionResetError("gone")])
def test_the_next_region_answers(failure: Any) -> None:
    world = World(sg=failure)
    assert regions().call(world.call, "m", prompt="Hi").where == "us"
    assert [where for where, *_ in world.asked] == ["sg", "us"]


def test_each_is_asked_once_and_the_last_failure_is_told() -> None:
    world = World(sg=500, us=429, bj=503)
    assert regions().call(world.call, "m", prompt="Hi").status_code == 503 and len(world.asked) == 3
    world = World(sg=500, us=429, bj=ConnectionResetError("gone"))
    with pytest.raises(ConnectionResetError):
        regions().call(world.call, "m", prompt="Hi")


def test_what_all_would_refuse_is_asked_once() -> None:
    world = World(sg=400)
    assert regions().call(world.call, "m", prompt="Hi").status_code == 400 and len(world.asked) == 1
    world = World(sg=ValueError("a bug"))
    with pytest.raises(ValueError, match="a bug"):
        regions().call(world.call, "m", prompt="Hi")


def test_through_the_sdk(live: Live) -> None:
    both = Regions([Region("http://127.0.0.1:9/api/v1", "sk-x"), Region(live.url + "/api/v1", live.key)])
    for _ in range(2):
        assert both.call(Generation.call, "tiny-instruct", prompt="Hi").output.text == "Hello there, friend."


def test_keys_are_not_shown_and_none_is_refused() -> None:
    assert "secret" not in repr(Region("u", "secret"))
    with pytest.raises(ValueError, match="regions is empty"):
        Regions([])
