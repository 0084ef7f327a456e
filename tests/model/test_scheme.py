"""Schemes: what they decide by default and by rule, what they refuse, and that they survive config.json."""

from __future__ import annotations

from typing import Any

import pytest

from qnext.model.scheme import Scheme


def test_routers_and_gates_stay_high() -> None:
    scheme = Scheme()
    assert (scheme.kind, scheme.group) == ("int4", 64)
    kinds = {name: scheme.kind_of(f"layers.3.{name}") for name in ("mlp.router", "mlp.experts.down_proj")}
    assert kinds == {"mlp.router": "bfloat16", "mlp.experts.down_proj": "int4"}
    assert scheme.kind_of("layers.0.linear_attn.ba_proj") == "bfloat16"
    assert Scheme("float32").kind_of("layers.0.linear_attn.ba_proj") == "float32"
    assert Scheme("int8").group == 128


def test_the_first_rule_that_fits_decides() -> None:
    scheme = Scheme.parse("int4", 32, ["layers.0.mlp.router=float32", "layers.0.*=int8"])
    assert scheme.kind_of("layers.0.mlp.router") == "float32"
    assert scheme.kind_of("layers.0.linear_attn.out_proj") == "int8"
    assert scheme.kind_of("layers.10.linear_attn.out_proj") == "int4"
    assert scheme.describe() == "int4, group 32, layers.0.mlp.router in float32, layers.0.* in int8"


def test_config_json_and_back() -> None:
    scheme = Scheme("int8", 32, (("lm_head", "bfloat16"),))
    assert Scheme.from_dict(scheme.to_dict(), "here") == scheme


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Scheme("int5"), "kind is 'int5': use one of int4, int8"),
        (lambda: Scheme(group=48), "group is 48: use one of 32, 64, 128"),
        (lambda: Scheme(rules=(("lm_head", "fp8"),)), "rules give 'lm_head' the kind 'fp8': use one of int4"),
        (lambda: Scheme.parse("int4", None, ["int8"]), "rule 'int8' is not PATTERN=KIND"),
        (lambda: Scheme.parse("int4", None, ["lm_head="]), "rule 'lm_head=' is not PATTERN=KIND"),
    ],
)
def test_refusals(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "here.version is 2, this qnext reads 1"),
        ({"kind": "int5"}, "here: kind is 'int5'"),
        ({"kind": ["int4"]}, "here: "),
        ({"group": 0}, "here.group is 0"),
        ({"group": "64"}, "here: group is '64'"),
        ({"rules": [["lm_head"]]}, "here.rules is .*, expected pairs"),
        ({"zero_point": True}, "should not have zero_point"),
    ],
)
def test_refusals_of_config_json(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Scheme.from_dict({**Scheme().to_dict(), **change}, "here")
