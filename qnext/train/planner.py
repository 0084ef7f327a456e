"""The planner: what a run would take on a cluster, from a shape's costs and stated assumptions.

Called by `qnext train --plan`. Invariant: every figure follows from `costs` and the assumptions printed with
it; nothing is measured, and no assumption is hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

from qnext import config
from qnext.model.config import ModelConfig
from qnext.model.summary import read_config
from qnext.text.tokenizer import Tokenizer

from .costs import Shape
from .recipe import Recipe

PUBLISHED_RATIO = 0.093  # GPU hours of the 80B against those of Qwen3-32B, as announced in September 2025
SPARSE = "qwen3-next-80b-a3b"
DENSE = "qwen3-32b"


@dataclass(frozen=True)
class Assumptions:
    """What a plan supposes, each to be set as `key=value`.

    tokens: to train on. sequence: tokens of a row. gpus: of the cluster, over all of which state is sharded.
    expert_parallel: GPUs that split the experts of a layer. row_tokens: tokens on a GPU at once. gpu_tflops:
    dense bf16 peak; gpu_gib: memory. mfu: model FLOPs utilisation, 0 for what is usual (0.4 dense, 0.25
    sparse). price: of a GPU hour, in dollars. mtp_depth: passes of the MTP head. checkpointing: of
    activations.
    """

    tokens: float = 0.0
    sequence: int = 4096
    gpus: int = 1024
    expert_parallel: int = 8
    row_tokens: int = 8192
    gpu_tflops: float = 989.0
    gpu_gib: float = 80.0
    mfu: float = 0.0
    price: float = 2.0
    mtp_depth: int = 1
    checkpointing: bool = True

    def __post_init__(self) -> None:
        for name in ("sequence", "gpus", "expert_parallel", "row_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, not {getattr(self, name)}")
        for name in ("gpu_tflops", "gpu_gib"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be more than 0, not {getattr(self, name)}")
        for name in ("tokens", "price", "mtp_depth"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be 0 or more, not {getattr(self, name)}")
        if not 0 <= self.mfu <= 1:
            raise ValueError(f"mfu is a share of the peak, 0 to 1, not {self.mfu}")
        if self.gpus % self.expert_parallel:
            raise ValueError(f"gpus ({self.gpus}) must be a multiple of expert_parallel")


# Usual utilisations: Llama 3's report has 38 to 43 % for a dense model; for sparse ones we know of no figure
# of this kind of network, DeepSeek-V3's published hours come to about 35 % of the bf16 peak.
_MFU_DENSE, _MFU_SPARSE = 0.40, 0.25


@dataclass(frozen=True)
class Plan:
    """A shape and the assumptions it is reckoned with; `mfu` is never 0 here."""

    name: str
    shape: Shape
    given: Assumptions

    @classmethod
    def of(cls, name: str, shape: Shape, given: Assumptions) -> Plan:
        """Fills in the usual utilisation. Raises ValueError without tokens."""
        if not given.tokens:
            raise ValueError(f"{name}: how many tokens it is trained on is not known: give tokens=15e12")
        depth = given.mtp_depth if shape.mtp else 0
        usual = _MFU_SPARSE if shape.routed else _MFU_DENSE
        return cls(name, shape, replace(given, mfu=given.mfu or usual, mtp_depth=depth))

    @property
    def token_flops(self) -> float:
        """Of one token, forward and backward."""
        return self.shape.training_flops(self.given.sequence, self.given.mtp_depth)

    @property
    def flops(self) -> float:
        """Of the whole run."""
        return self.token_flops * self.given.tokens

    @property
    def tokens_per_second(self) -> float:
        """Of one GPU."""
        return self.given.gpu_tflops * 1e12 * self.given.mfu / self.token_flops

    @property
    def gpu_hours(self) -> float:
        """Of the whole run."""
        return self.given.tokens / self.tokens_per_second / 3600

    @property
    def memory(self) -> dict[str, float]:
        """Bytes on one GPU, by what they are for."""
        given, shape = self.given, self.shape
        split = given.expert_parallel if shape.routed else 1
        return {
            "state": shape.state_bytes() / given.gpus,
            "gathered weights": shape.gathered_bytes(split),
            "activations": shape.activation_bytes(given.row_tokens, checkpointing=given.checkpointing),
        }


def plan(what: str, overrides: Sequence[str] = ()) -> list[tuple[str, str]]:
    """Lines of (label, text) for a built-in name, a model's folder or config.json, or a recipe; overrides
    set assumptions, or, for a recipe, its keys too. Raises ValueError naming what is wrong."""
    names = {field.name for field in fields(Assumptions)}
    own = [entry for entry in overrides if entry.partition("=")[0].strip() in names]
    rest = [entry for entry in overrides if entry not in own]
    usual: dict[str, Any] = {}
    if what in TOKENS:
        shape, usual["tokens"] = built_in(what), TOKENS[what]
    elif what.endswith(".toml"):
        recipe = Recipe.load(what, rest)
        shape, rest = Shape.of(_recipe_config(recipe)), []
        row, schedule = recipe.data.tokens_per_batch, recipe.schedule
        usual = {"tokens": float(schedule.steps * schedule.accumulate * row), "row_tokens": row}
        usual |= {"sequence": recipe.data.max_length, "gpus": 1, "expert_parallel": 1}
    else:
        shape = Shape.of(read_config(Path(what)))
    supposed = [f"{key}={value}" for key, value in usual.items()]
    given = config.load(Assumptions, None, [*supposed, *own, *rest])
    lines = describe(Plan.of(what, shape, given))
    return lines + _comparison(given) if what in TOKENS else lines


def _recipe_config(recipe: Recipe) -> ModelConfig:
    if recipe.init:
        return read_config(recipe.init)
    table = dict(recipe.model)
    layers = table.pop("mtp_layers", 1)
    words = Tokenizer.from_pretrained(recipe.tokenizer).vocab_size
    try:
        return ModelConfig.from_dict({**table, "vocab_size": words}, mtp_layers=layers)
    except ValueError as error:
        raise ValueError(f"[model] of the recipe: {str(error).removeprefix('config.json: ')}") from None


def describe(made: Plan) -> list[tuple[str, str]]:
    """Lines of (label, text) for people."""
    shape, given, memory = made.shape, made.given, made.memory
    used, room = sum(memory.values()) / 2**30, given.gpu_gib
    parts = ", ".join(f"{kind} {size / 2**30:.2f}" for kind, size in memory.items())
    fits = "fits" if used < 0.9 * room else "does NOT fit: give more gpus or fewer row_tokens"
    days = made.gpu_hours / given.gpus / 24
    return [
        ("model", made.name),
        ("parameters", f"{_short(shape.total)} in all, {_short(shape.active)} a token"),
        ("FLOPs", f"{_short(made.token_flops)} a token, {made.flops:.3g} in all"),
        ("memory", f"{used:.3g} of {room:g} GiB a GPU ({parts}): {fits}"),
        ("speed", f"{made.tokens_per_second:,.0f} tokens/s a GPU"),
        ("GPU hours", f"{_short(made.gpu_hours)}: {days:.3g} days on {given.gpus:,}"),
        ("cost", f"${_short(made.gpu_hours * given.price)}"),
        (
            "assumed",
            f"{_short(given.tokens)} tokens in rows of {given.sequence}, {given.row_tokens} at once a GPU",
        ),
        ("", f"mfu {given.mfu:.0%} of {given.gpu_tflops:g} TFLOP/s, ${given.price:g} a GPU hour"),
        ("", f"state over all GPUs, experts over {given.expert_parallel}, MTP depth {given.mtp_depth}"),
        ("", f"activations {'' if given.checkpointing else 'not '}checkpointed"),
    ]


def _short(number: float) -> str:
    """Three digits and k, M, G, T or P."""
    for unit, size in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.4g} {unit}"
    return f"{number:.3g}"


def _comparison(given: Assumptions) -> list[tuple[str, str]]:
    """The published 80B beside the dense 32B, each on the tokens that it was trained on and, unless an `mfu`
    for both is given, at what is usual for its kind."""
    sparse, dense = (
        Plan.of(name, built_in(name), replace(given, tokens=tokens)) for name, tokens in TOKENS.items()
    )
    hours, flops = sparse.gpu_hours / dense.gpu_hours, sparse.flops / dense.flops
    needed = flops / PUBLISHED_RATIO * dense.given.mfu
    pairs = [(plan.name, _short(plan.given.tokens), _short(plan.gpu_hours)) for plan in (sparse, dense)]
    return [
        (
            "comparison",
            ", ".join(f"{name} on {tokens} tokens {took} GPU hours" for name, tokens, took in pairs),
        ),
        ("", f"{hours:.1%} of the hours, published {PUBLISHED_RATIO:.1%}; {flops:.1%} of the FLOPs"),
        ("", f"the published ratio follows from an mfu of {needed:.0%} beside {dense.given.mfu:.0%} dense"),
    ]


_PUBLISHED_80B: dict[str, Any] = {
    "vocab_size": 151936, "hidden_size": 2048, "num_hidden_layers": 48, "full_attention_interval": 4,
    "num_attention_heads": 16, "num_key_value_heads": 2, "head_dim": 256, "partial_rotary_factor": 0.25,
    "rope_theta": 10000000, "max_position_embeddings": 262144, "linear_num_key_heads": 16,
    "linear_num_value_heads": 32, "linear_key_head_dim": 128, "linear_value_head_dim": 128,
    "linear_conv_kernel_dim": 4, "num_experts": 512, "num_experts_per_tok": 10, "moe_intermediate_size": 512,
    "shared_expert_intermediate_size": 512, "intermediate_size": 5120, "tie_word_embeddings": False,
}  # fmt: skip

TOKENS = {SPARSE: 15e12, DENSE: 36e12}  # that they were trained on


@cache
def built_in(name: str) -> Shape:
    """The shape of a published model, SPARSE or DENSE."""
    if name == SPARSE:
        return Shape.of(ModelConfig.from_dict(_PUBLISHED_80B, mtp_layers=1))
    return Shape.dense(
        hidden=5120, layers=64, heads=64, kv_heads=8, head_dim=128, inner=25600, vocabulary=151936
    )
