from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qnext.server.prices import MOST, UNIT, Price, Tariff, amount, prices, shown


@pytest.mark.parametrize(
    ("text", "units"), [("0", 0), ("12.50", 125 * UNIT // 10), ("0.000000000001", 1), ("1000000", MOST)]
)
def test_amounts(text: str, units: int) -> None:
    assert amount(text) == units and amount(shown(units)) == units


@pytest.mark.parametrize("text", ["", "-1", "1e3", "1,5", "nan", ".5", "1000000.1", "0.0000000000001", "٣"])
def test_what_is_no_amount(text: str) -> None:
    with pytest.raises(ValueError, match="is no amount: give a decimal number"):
        amount(text)


@given(st.integers(0, MOST))
def test_amounts_are_shown_whole(units: int) -> None:
    assert amount(shown(units)) == units


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 10**12), st.integers(0, 10**12))
def test_costs_are_exact(read: int, written: int, into: int, out: int) -> None:
    """Against fractions: prices are millionths of a currency unit, per million tokens."""
    price = prices(f"{shown(into * 10**6)}/{shown(out * 10**6)}")["*"]
    right = Fraction(into * read + out * written, 10**6 * 10**6)
    assert Fraction(price.cost(read, written), UNIT) == right


def test_prices_by_model() -> None:
    known = Tariff(prices("0.15/1.2, big=1/2"), cached=20, batch=50)
    assert known.price("big", batch=False) == Price(UNIT // 10**6, 2 * UNIT // 10**6, UNIT // 5 // 10**6)
    assert known.price("any", batch=False) == Price(150_000, 1_200_000, 30_000)
    assert known.price("any", batch=True) == Price(75_000, 600_000)
    assert Tariff({}).price("any", batch=False) == Price(0, 0, 0)


def test_a_share_that_is_no_whole_number() -> None:
    assert Tariff(prices("0.000005/1"), cached=20).price("any", batch=False).cached == 1
    for share in ({"cached": 30}, {"batch": 50}):
        with pytest.raises(
            ValueError, match=r"percent of 0\.000005 has more than six decimals: give a price"
        ):
            Tariff(prices("0.000005/1"), **share)


@pytest.mark.parametrize("text", ["0.15", "1/2/3", "=1/2", "a=b=1/x", "0.0000001/1", "1/2,"])
def test_what_are_no_prices(text: str) -> None:
    with pytest.raises(ValueError):
        prices(text)
