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
    """Units for one token of the prompt, for one of the answer, and for one of the prompt that the cache held
    (None: as for any)."""

    input: int
    output: int
    cached: int | None = None

    def cost(self, input_tokens: int, output_tokens: int, cached_tokens: int = 0) -> int:
        """`cached_tokens` are those of the input that the cache held."""
        saved = 0 if self.cached is None else self.input - self.cached
        return input_tokens * self.input - cached_tokens * saved + output_tokens * self.output


@dataclass(frozen=True)
class Tariff:
    """What tokens cost. `models` are the prices by model; of them a token of the prompt that the cache held
    costs `cached` percent, and all of a batch costs `batch` percent, whatever the cache held. Raises
    ValueError for a price of which that is no whole number of units."""

    models: Mapping[str, Price]
    cached: int = 100
    batch: int = 100

    def __post_init__(self) -> None:
        for model in self.models:
            for batch in (False, True):
                self.price(model, batch=batch)

    def price(self, model: str, *, batch: bool) -> Price:
        """A model's own price, or that of all models, or nothing."""
        price = self.models.get(model) or self.models.get(ANY_MODEL) or Price(0, 0)
        if batch:
            return Price(_percent(price.input, self.batch), _percent(price.output, self.batch))
        return Price(price.input, price.output, _percent(price.input, self.cached))


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


def _token(text: str) -> int:
    """Units a token, of an amount per million tokens."""
    each, rest = divmod(amount(text), 10**6)
    if rest:
        raise ValueError(f"{text!r} has more than six decimals")
    return each


def _percent(units: int, share: int) -> int:
    part, rest = divmod(units * share, 100)
    if rest:
        price = shown(units * 10**6)
        raise ValueError(f"{share} percent of {price} has more than six decimals: give a price with fewer")
    return part
