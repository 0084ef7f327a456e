"""YaRN: the stretching of rotary positions that takes the model beyond its native context.

Part of `ModelConfig`, applied by `rotary`. Invariant: `frequencies` and `scale` depend on the config alone
("static" YaRN), never on the length of a prompt.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any


@dataclass(frozen=True)
class Yarn:
    """`factor` times the `original_max_position_embeddings` positions, per the YaRN paper (Peng et al.,
    2023).
    """

    factor: float
    original_max_position_embeddings: int
    attention_factor: float | None = None
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type == "bool":
                legal, wish = type(value) is bool, "true or false"
            else:
                legal, wish = type(value) in (int, float) and 0 < value < math.inf, "a number above 0"
            if not legal and not (value is None and "None" in str(field.type)):
                raise ValueError(f"rope_scaling.{field.name} is {value!r}: give {wish}")
        if self.factor < 1:
            raise ValueError(f"rope_scaling.factor is {self.factor}: give 1 or more")

    @classmethod
    def from_dict(cls, table: Mapping[str, Any], *, default_original: int) -> Yarn | None:
        """Read `rope_scaling`; None for plain rotary positions. Raises ValueError on another kind of
        scaling.
        """
        kind = table.get("rope_type", table.get("type", "default"))
        if kind == "default":
            return None
        if kind != "yarn":
            raise ValueError(f"rope_scaling.rope_type is {kind!r}: 'default' and 'yarn' are supported")
        known = {field.name for field in fields(cls)}
        values = {name: value for name, value in table.items() if name in known and value is not None}
        unknown = set(table) - known - {"rope_type", "type"}
        if unknown:
            raise ValueError(f"rope_scaling.{sorted(unknown)[0]} is not a field of YaRN")
        values.setdefault("original_max_position_embeddings", default_original)
        if "factor" not in values:
            raise ValueError("rope_scaling.factor is missing: YaRN needs it")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        return {"rope_type": "yarn", **{k: v for k, v in asdict(self).items() if v is not None}}

    @property
    def scale(self) -> float:
        """Factor on cosine and sine (the attention temperature of the paper)."""
        if self.attention_factor is not None:
            return self.attention_factor

        def magnitude(weight: float) -> float:
            return 0.1 * weight * math.log(self.factor) + 1.0 if self.factor > 1 else 1.0

        if self.mscale and self.mscale_all_dim:
            return magnitude(self.mscale) / magnitude(self.mscale_all_dim)
        return magnitude(1.0)

    def ramp_bounds(self, dim: int, theta: float) -> tuple[float, float]:
        """Frequency indices between which the blend runs from original (below) to stretched (above)."""

        def index_of(rotations: float) -> float:
            positions = self.original_max_position_embeddings / (rotations * 2 * math.pi)
            return dim * math.log(positions) / (2 * math.log(theta))

        low, high = index_of(self.beta_fast), index_of(self.beta_slow)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, dim - 1)
        return low, high if high != low else high + 0.001
