"""What the query of a list asks for: numbers, choices and times, and refusals that name the parameter.

Called by the routes that list files, batches and tasks. Invariant: pure functions; what is absent is the
default, and an empty number or choice is a wrong one.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import UTC, datetime

from .errors import invalid

Query = Mapping[str, str]


def whole_number(query: Query, name: str, default: int, most: int) -> int:
    """From 1 to `most`."""
    text = query.get(name, str(default))
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:9]) <= most and len(text) < 10):
        raise invalid(f"Range of {name} should be [1, {most}]", name)
    return int(text)


def page(query: Query) -> tuple[int, int]:
    """`page_no` and `page_size`."""
    return whole_number(query, "page_no", 1, 10**6), whole_number(query, "page_size", 10, 100)


def choice(query: Query, name: str, allowed: Collection[str], default: str) -> str:
    text = query.get(name, default)
    if text not in allowed:
        raise invalid(f"{name} should be one of {sorted(allowed)}", name)
    return text


def names(query: Query, name: str, allowed: Collection[str] | None = None) -> set[str]:
    """A list separated by commas; empty where nothing was asked."""
    found = {each.strip() for each in (query.get(name) or "").split(",") if each.strip()}
    if allowed is not None and not found <= set(allowed):
        raise invalid(f"{name} should be some of {sorted(allowed)}, separated by commas", name)
    return found


def moment(query: Query, name: str) -> float | None:
    """`yyyyMMddHHmmss` in UTC, or seconds since 1970, as seconds since 1970."""
    text = query.get(name) or ""
    if not text:
        return None
    if text.isascii() and text.isdigit() and len(text) <= 11:
        return float(text)
    try:
        if len(text) != 14:
            raise ValueError
        return datetime.strptime(text, "%Y%m%d%H%M%S").replace(tzinfo=UTC).timestamp()
    except ValueError:
        raise invalid(f"{name} should be yyyyMMddHHmmss (UTC) or seconds since 1970", name) from None


def written_time(seconds: float | None) -> str | None:
    """As native answers write times: `2026-01-31 08:15:00.000`, UTC."""
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]
