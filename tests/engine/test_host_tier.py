"""Host memory that an accelerator reads fast. What all tiers do is in `test_tier.py`."""

from __future__ import annotations

import pytest

from qnext.engine.host_tier import HostTier

from .entries import entry, same


def test_keeps_the_tensors_themselves() -> None:
    tier, one = HostTier(10_000), entry(1)
    tier.put(one)
    found = tier.get(one.header.key)
    assert found is not None and found.kv.is_pinned() == (found.kv is not one.kv)


@pytest.mark.gpu
def test_memory_is_pinned_and_counted_as_given() -> None:
    tier, one, other = HostTier(4096), entry(1, kv=1025, state=0), entry(2, kv=1500, state=500)
    tier.put(one)  # takes 2048 bytes
    tier.put(other)  # takes 2048 and 512: the first has to go
    assert one.header.key not in tier
    found = tier.get(other.header.key)
    assert found is not None and same(found, other)
    assert found.kv.is_pinned() and found.state.is_pinned()
    tier.put(entry(3, kv=2049, state=1))  # would take 4096 and 1
    assert tier.counts == {"evicted": 1, "refused": 1} and other.header.key in tier
