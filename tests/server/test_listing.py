from __future__ import annotations

from typing import Any

import pytest

from qnext.server import listing
from qnext.server.errors import ApiError

MOMENT = 1_767_225_600.0  # 2026-01-01 00:00:00 UTC


def test_what_is_absent_is_the_default() -> None:
    for query in ({}, {"status": "", "create_after": ""}):
        assert listing.whole_number(query, "limit", 20, 100) == 20
        assert listing.choice(query, "order", ("asc", "desc"), "desc") == "desc"
        assert listing.names(query, "status", ("failed",)) == set()
        assert listing.moment(query, "create_after") is None
        assert listing.page(query) == (1, 10)


def test_an_empty_number_or_choice_is_a_wrong_one() -> None:
    with pytest.raises(ApiError, match="Range of limit"):
        listing.whole_number({"limit": ""}, "limit", 20, 100)
    with pytest.raises(ApiError, match="order should be one of"):
        listing.choice({"order": ""}, "order", ("asc", "desc"), "desc")


def test_what_is_given_is_read() -> None:
    assert listing.whole_number({"limit": "100"}, "limit", 20, 100) == 100
    assert listing.names({"status": "failed, expired,"}, "status", ("failed", "expired")) == {
        "failed",
        "expired",
    }
    assert listing.moment({"t": "20260101000000"}, "t") == listing.moment({"t": "1767225600"}, "t") == MOMENT
    assert listing.written_time(MOMENT + 0.25) == "2026-01-01 00:00:00.250"


@pytest.mark.parametrize("text", ["0", "101", "-1", "1.5", "x", "１", "9" * 400, "1" * 9])
def test_numbers_out_of_range(text: str) -> None:
    with pytest.raises(ApiError, match="Range of limit should be"):
        listing.whole_number({"limit": text}, "limit", 20, 100)


@pytest.mark.parametrize("text", ["20261301000000", "yesterday", "9" * 12, "2026-01-01", "1" * 15])
def test_times_that_are_none(text: str) -> None:
    with pytest.raises(ApiError, match="t should be yyyyMMddHHmmss"):
        listing.moment({"t": text}, "t")


def test_choices_that_are_none() -> None:
    query: Any = {"order": "up", "status": "failed,odd"}
    with pytest.raises(ApiError, match="order should be one of"):
        listing.choice(query, "order", ("asc", "desc"), "desc")
    with pytest.raises(ApiError, match="status should be some of"):
        listing.names(query, "status", ("failed",))
