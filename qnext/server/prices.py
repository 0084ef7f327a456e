"""Money: amounts and prices as whole numbers, so that every sum is exact.

Called by `settings` (prices), `ledger` (costs) and `cli` (amounts as people write them). Invariant: no floats
and no rounding. The unit is 10^-12 of a currency unit: a price per million tokens with up to six decimals is
then a whole number of units a token.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal

UNIT = 10**12
MOST = 10**6 * UNIT  # fits, with room for sums, in the 64 bits that databases give
_DECIMAL = re.compile(r"[0-9]{1,7}(?:\.[0-9]{1,12})?")
ANY_MODEL = "*"


@dataclass(frozen=True)
class Price:
    """Units for one token of the prompt, and for one of the answer."""

    input: int
    output: int

    def cost(self, input_tokens: int, output_tokens: int) -> int:
        return input_tokens * self.input + output_tokens * self.output


def amount(text: str) -> int:
    """The units of a decimal number such as `12.50`. Raises ValueError saying what is wanted."""
    if not _DECIMAL.fullmatch(text.strip()) or int(Decimal(text) * UNIT) > MOST:
        raise ValueError(f"{text!r} is no amount: give a decimal number from 0 to 1000000, such as 12.50")
    return int(Decimal(text) * UNIT)


def shown(units: int) -> str:
    """An amount for people: at least two decimals, and as many more as it has."""
    text = f"{Decimal(units) / UNIT:.12f}".rstrip("0")
    whole, _, rest = text.partition(".")
    return f"{whole}.{rest:0<2}"


def prices(text: str) -> dict[str, Price]:
    """Prices per million tokens, `INPUT/OUTPUT` for all models or `MODEL=INPUT/OUTPUT`, with commas between
    them. Raises ValueError for what is none."""
    found = {}
    for part in text.split(","):
        name, named, pair = part.rpartition("=")
        if named and not name.strip():
            raise ValueError("a price without a model before its =")
        into, _, out = pair.partition("/")
        found[name.strip() or ANY_MODEL] = Price(_token(into), _token(out))
    return found


def price_of(model: str, known: Mapping[str, Price]) -> Price:
    """A model's own price, or that of all models, or nothing."""
    return known.get(model) or known.get(ANY_MODEL) or Price(0, 0)


def _token(text: str) -> int:
    """Units a token, of an amount per million tokens."""
    each, rest = divmod(amount(text), 10**6)
    if rest:
        raise ValueError(f"{text!r} has more than six decimals")
    return each
