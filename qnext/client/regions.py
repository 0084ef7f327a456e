"""Regions: several servers of one protocol, asked in turn, the next one when one fails.

Made by programs. Invariant: a call is made at most once at each server, and a refusal that every server would
repeat (a wrong parameter, say) is returned at once.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from .retries import retryable

T = TypeVar("T")


@dataclass(frozen=True)
class Region:
    """`base_address` ends in /api/v1; a key belongs to one region. `name` is for whoever reads logs."""

    base_address: str
    api_key: str = field(repr=False)
    name: str = ""


class Regions:
    """Safe from several threads. Raises ValueError without any region."""

    def __init__(self, regions: Sequence[Region]) -> None:
        if not regions:
            raise ValueError("regions is empty: give at least one Region")
        self._regions = tuple(regions)
        self._turn = itertools.count()

    def call(self, call: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """`call(*args, base_address=…, api_key=…, **kwargs)` at the next region in turn, and, while the
        failure is one that may pass, at those after it. The last failure is returned or raised."""
        first = next(self._turn) % len(self._regions)
        *others, last = self._regions[first:] + self._regions[:first]
        for region in others:
            try:
                answer = self._ask(region, call, args, kwargs)
            except Exception as error:
                if not retryable(error):
                    raise
            else:
                if not retryable(answer):
                    return answer
        return self._ask(last, call, args, kwargs)

    def _ask(
        self, region: Region, call: Callable[..., T], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> T:
        return call(*args, **kwargs, base_address=region.base_address, api_key=region.api_key)
