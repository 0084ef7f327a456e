"""Entries for the tests of the tiers: whoever knows the header knows what the payload must be."""

from __future__ import annotations

import torch
from torch import Tensor

from qnext.engine.tier import Entry, Header, Tier, entry_key

FINGERPRINT = "ab12"
KV, STATE = 600, 400
SIZE = KV + STATE  # bytes of payload


def entry(
    *tokens: int, parent: Entry | None = None, salt: str = "", kv: int = KV, state: int = STATE
) -> Entry:
    above = parent.header.key if parent else None
    header = Header(entry_key(above, salt, tokens), above, salt, tokens)
    return Entry(header, payload(header.key, 1, kv), payload(header.key, 2, state))


def payload(key: str, kind: int, size: int) -> Tensor:
    generator = torch.Generator().manual_seed(int(key[:12], 16) + kind)
    return torch.randint(256, (size,), generator=generator, dtype=torch.uint8)


def same(one: Entry | None, other: Entry) -> bool:
    """Every byte; for None, False."""
    return (
        one is not None
        and one.header == other.header
        and torch.equal(one.kv, other.kv)
        and torch.equal(one.state, other.state)
    )


def held(tier: Tier) -> set[str]:
    """The keys of a tier, which must stand parents first."""
    seen: set[str] = set()
    for header in tier.headers():
        assert header.parent is None or header.parent in seen
        assert header.key == entry_key(header.parent, header.salt, header.tokens) and header.key in tier
        seen.add(header.key)
    return seen


def keys(*entries: Entry) -> set[str]:
    return {each.header.key for each in entries}
