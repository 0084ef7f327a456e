"""A scheme: which matrix of a packed model is stored in which kind of number.

Chosen by the user of `convert` or `serve`, read by `quant`, kept in `config.json` by `packed_file`.
Invariant: a scheme that exists is legal, and with the shape of a network it decides every byte of the packed
form.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from qnext.kernels.packed import BITS, GROUPS, ZERO

METHOD = "qnext"
VERSION = 1
# Small, and an error in them decides which expert runs, or how long the state remembers.
HIGH = ("*.router", "*.ba_proj")


@dataclass(frozen=True)
class Scheme:
    """`kind` of the big matrices, `group` columns that share a scale, and `rules`: patterns of names and the
    kinds of those matrices, the first that fits decides. Raises ValueError naming field and fix.

    The router and the gates of the delta rule stay bf16 (float32 if all is float32) unless a rule says
    otherwise; the embedding table too; vectors are float32.
    """

    kind: str = "int4"
    group: int = 0  # 0: the kind's usual one
    rules: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        kinds = ", ".join(BITS)
        if self.kind not in BITS:
            raise ValueError(f"kind is {self.kind!r}: use one of {kinds}")
        if not self.group:
            # eight bits are exact enough for the longest group, which costs the least
            object.__setattr__(self, "group", 128 if self.kind == "int8" else 64)
        if type(self.group) is not int or self.group not in GROUPS:
            raise ValueError(f"group is {self.group!r}: use one of {', '.join(map(str, GROUPS))}")
        for pattern, kind in self.rules:
            if kind not in BITS:
                raise ValueError(f"rules give {pattern!r} the kind {kind!r}: use one of {kinds}")

    @classmethod
    def parse(cls, kind: str, group: int | None, rules: Sequence[str]) -> Scheme:
        """From the words of a command line; a rule is `PATTERN=KIND`."""
        parted = [rule.rpartition("=") for rule in rules]
        for rule, (pattern, _, found) in zip(rules, parted, strict=True):
            if not pattern or not found:
                raise ValueError(f"rule {rule!r} is not PATTERN=KIND, such as 'layers.0.*=int8'")
        return cls(kind, group or 0, tuple((pattern, found) for pattern, _, found in parted))

    @property
    def plain(self) -> str:
        """The kind of what is never quantised: the embedding table, routers and gates."""
        return "float32" if self.kind == "float32" else "bfloat16"

    def kind_of(self, name: str) -> str:
        """The kind of one matrix of the packed form."""
        for pattern, kind in self.rules:
            if fnmatchcase(name, pattern):
                return kind
        return self.plain if any(fnmatchcase(name, pattern) for pattern in HIGH) else self.kind

    def check_rules(self, names: Iterable[str]) -> None:
        """Raises ValueError if a rule fits none of these names: it would be a slip without a sign."""
        known = list(names)
        for pattern, _ in self.rules:
            if not any(fnmatchcase(name, pattern) for name in known):
                raise ValueError(
                    f"rule {pattern!r} fits no matrix of this model; there are {', '.join(known[:4])}, …"
                )

    def describe(self) -> str:
        """A line for people."""
        text = f"{self.kind}, group {self.group}" if self.kind in ZERO else self.kind
        return text + "".join(f", {pattern} in {kind}" for pattern, kind in self.rules)

    def to_dict(self) -> dict[str, Any]:
        """The `quantization_config` of a packed checkpoint."""
        rules = [list(rule) for rule in self.rules]
        return {
            "quant_method": METHOD,
            "version": VERSION,
            "kind": self.kind,
            "group": self.group,
            "rules": rules,
        }

    @classmethod
    def from_dict(cls, table: Mapping[str, Any], field: str) -> Scheme:
        """Read back what `to_dict` gave; `field` names the table in errors."""
        expected = cls().to_dict()
        if table.keys() != expected.keys():
            wrong = ", ".join(sorted(table.keys() ^ expected.keys()))
            raise ValueError(f"{field} lacks or should not have {wrong}: convert the model again")
        for name in ("quant_method", "version"):
            if table[name] != expected[name]:
                raise ValueError(
                    f"{field}.{name} is {table[name]!r}, this qnext reads {expected[name]!r}: "
                    "convert the model again"
                )
        rules = table["rules"]
        pairs = isinstance(rules, list) and all(
            isinstance(rule, list) and len(rule) == 2 and all(isinstance(word, str) for word in rule)
            for rule in rules
        )
        if not pairs:
            raise ValueError(f"{field}.rules is {rules!r}, expected pairs of a pattern and a kind")
        if table["group"] == 0:
            raise ValueError(f"{field}.group is 0: use one of {', '.join(map(str, GROUPS))}")
        try:
            return cls(table["kind"], table["group"], tuple((pattern, kind) for pattern, kind in rules))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{field}: {error}") from None
