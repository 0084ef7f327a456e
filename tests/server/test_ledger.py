from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qnext.server.admission import Admission
from qnext.server.errors import ApiError
from qnext.server.keys import Key, Keys
from qnext.server.ledger import Entry, Ledger, Purse, Status
from qnext.server.prices import UNIT, Price, Tariff, amount, prices
from qnext.server.settings import Settings
from qnext.server.store import open_store

# A prompt of 1,000,000 tokens costs 1, an answer of as many 10.
TARIFF = Tariff(prices("1/10"), cached=20, batch=50)
NOVEMBER, DECEMBER = 1_795_600_000.0, 1_796_100_000.0  # 2026-11-25, 2026-12-01


class Clock:
    def __init__(self) -> None:
        self.now = NOVEMBER

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def key(keys: Keys) -> Key:
    return keys.create()[0]


@pytest.fixture
def ledger(tmp_path: Path, clock: Clock) -> Ledger:
    return Ledger(open_store(tmp_path / "home"), "me", TARIFF, clock)


def entry(key: Key, read: int, written: int, status: Status = "ok", model: str = "m") -> Entry:
    return Entry(NOVEMBER, key.id, model, "r", read, written, status)


def refused(reserve: Callable[[], object]) -> str:
    with pytest.raises(ApiError) as error:
        reserve()
    return error.value.kind


@given(
    st.integers(0, 3000),
    st.integers(0, 10**6),
    st.integers(0, 500),
    st.integers(0, 500),
    st.integers(1, 2000),
    st.integers(0, 4000),
    st.integers(0, 100),
)
def test_a_purse_never_gives_more_than_it_has(
    free: int, money: int, into: int, out: int, prompt: int, wish: int, cached: int
) -> None:
    purse = Purse(free, money, Price(into, out, into * cached // 100))
    room = purse.answer(prompt)
    if room is not None and room < 0:
        assert Purse(free, money, Price(into, 0)).split(prompt, 0)[1] > money
        return
    granted = wish if room is None else min(wish, room)
    taken, cost = purse.split(prompt, granted)
    assert taken <= free and cost <= money and taken == min(free, prompt + granted)
    if room is not None and (out or free >= prompt + room):  # one token more would be too much
        more = purse.split(prompt, room + 1)
        assert more[1] > money or (more[0] == free and not out)
    for used in (0, granted // 2, granted):  # what is reserved covers any smaller use
        held = Purse(taken, cost, purse.price)
        plain = held.split(prompt, used)
        assert plain[0] <= taken and plain[1] <= cost
        some = held.split(prompt, used, prompt * cached // 100)  # and one that finds some of it in the cache
        assert some[0] == plain[0] and 0 <= some[1] <= plain[1]


def test_reserve_and_settle(ledger: Ledger, key: Key) -> None:
    number, granted = ledger.reserve(key.id, "m", 30, 100, free_limit=100)
    assert granted == 70  # what is left after the prompt
    assert refused(lambda: ledger.reserve(key.id, "m", 1, 1, free_limit=100)) == "tokens"
    settled = ledger.settle(number, entry(key, 30, 20))
    assert (settled.free_tokens, settled.cost) == (50, 0)
    assert ledger.free_used(key.id, "2026-11") == {"m": 50}
    number, granted = ledger.reserve(key.id, "m", 30, 100, free_limit=100)
    assert granted == 20
    ledger.settle(number, entry(key, 0, 0, "cancelled"))
    assert ledger.free_used(key.id, "2026-11") == {"m": 50}
    number, _ = ledger.reserve(key.id, "m", 30, 20, free_limit=100)
    ledger.settle(number, entry(key, 30, 20))
    assert refused(lambda: ledger.reserve(key.id, "m", 1, 1, free_limit=100)) == "free_tier"
    assert ledger.reserve(key.id, "other", 1, 1, free_limit=100)[1] == 1
    assert [row.status for row in ledger.entries(key.id)] == ["ok", "cancelled", "ok"]
    assert ledger.totals(key.id) == {"m": (3, 60, 40, 0)}


def test_a_balance_pays_after_the_free_tokens(ledger: Ledger, keys: Keys, key: Key) -> None:
    keys.change(key.id, balance=UNIT // 1000)  # a hundred tokens of an answer
    number, granted = ledger.reserve(key.id, "m", 50, 1000, free_limit=40)
    assert granted == 99  # 10 tokens of the prompt cost as much as one of the answer
    settled = ledger.settle(number, entry(key, 50, 60))
    assert (settled.free_tokens, settled.cost) == (40, 10 * UNIT // 10**6 + 60 * UNIT // 10**5)
    assert keys.find(key.id).balance == UNIT // 1000 - settled.cost
    keys.change(key.id, balance=0)
    assert refused(lambda: ledger.reserve(key.id, "m", 1, 1, free_limit=40)) == "arrears"
    keys.change(key.id, top_up=amount("0.00002"))
    assert ledger.reserve(key.id, "m", 10, 9, free_limit=40)[1] == 1
    assert refused(lambda: ledger.reserve(key.id, "m", 1, 1, free_limit=40)) == "tokens"


@pytest.mark.parametrize(
    ("batch", "free", "cost"),
    [(False, 0, 60 + 40 // 5 + 70 * 10), (False, 30, 60 + 10 // 5 + 700), (True, 0, (100 + 700) // 2)],
)
def test_what_the_cache_held_and_what_a_batch_asks_cost_less(
    ledger: Ledger, keys: Keys, key: Key, batch: bool, free: int, cost: int
) -> None:
    """The free tokens pay for what the cache held first; the price of a batch is one for all its tokens."""
    keys.change(key.id, balance=UNIT)
    number, _ = ledger.reserve(key.id, "m", 100, 70, free_limit=free, batch=batch)
    used = replace(entry(key, 100, 70), cached_tokens=40, batch=batch)
    assert ledger.settle(number, used) == replace(used, free_tokens=free, cost=cost * UNIT // 10**6)
    assert keys.find(key.id).balance == UNIT - cost * UNIT // 10**6
    assert ledger.entries(key.id) == [replace(used, free_tokens=free, cost=cost * UNIT // 10**6)]


def test_what_was_reserved_in_a_month_is_used_in_it(ledger: Ledger, key: Key, clock: Clock) -> None:
    number, _ = ledger.reserve(key.id, "m", 10, 90, free_limit=100)
    clock.now = DECEMBER
    other, granted = ledger.reserve(key.id, "m", 10, 90, free_limit=100)
    assert granted == 90
    ledger.settle(number, entry(key, 10, 7))
    ledger.settle(other, entry(key, 10, 8))
    assert ledger.free_used(key.id, "2026-11") == {"m": 17}
    assert ledger.free_used(key.id, "2026-12") == {"m": 18}


def test_two_servers_on_one_store_never_give_away_more_than_there_is(tmp_path: Path, keys: Keys) -> None:
    """Threads of two ledgers reserve and settle at random; the sums are exact."""
    key, _ = keys.create(balance=3 * UNIT // 1000)
    ledgers = [Ledger(open_store(tmp_path / "home"), name, TARIFF) for name in "ab"]
    free, start = 700, 3 * UNIT // 1000

    def work(seed: int) -> list[Entry]:
        dice, made, held = random.Random(seed), list[Entry](), list[tuple[Ledger, int, int, int]]()

        def settle() -> None:
            ledger, number, prompt, granted = held.pop(0)
            made.append(ledger.settle(number, entry(key, prompt, dice.randint(0, granted))))

        for _ in range(12):
            ledger = dice.choice(ledgers)
            prompt, wish = dice.randint(1, 30), dice.randint(1, 60)
            try:
                number, granted = ledger.reserve(key.id, "m", prompt, wish, free_limit=free)
            except ApiError:
                continue
            held.append((dice.choice(ledgers), number, prompt, granted))
            if len(held) > 3:
                settle()
        while held:
            settle()
        return made

    with ThreadPoolExecutor(6) as pool:
        made = [each for some in pool.map(work, range(6)) for each in some]
    spent = sum(each.cost for each in made)
    used = ledgers[0].free_used(key.id, ledgers[0].month()).get("m", 0)
    assert used == sum(each.free_tokens for each in made) <= free
    left = keys.find(key.id).balance
    assert left is not None and left == start - spent >= 0
    assert ledgers[0].totals(key.id)["m"][3] == spent and not ledgers[0].servers()
    assert len(made) > 20 and used > free * 0.8  # the test does reach the end of the quota


DIES = """
import os, signal, sys
from pathlib import Path
from qnext.server.admission import Admission
from qnext.server.settings import Settings
from qnext.server.store import open_store
home = Path(sys.argv[1])
admission = Admission(open_store(home), Settings(home=home))
admission.ledger.reserve(1, "m", 10, 50, free_limit=100)
print("reserved", flush=True)
if sys.argv[2] == "dies":
    os.kill(os.getpid(), signal.SIGKILL)
sys.stdin.read()
"""


def test_reservations_of_a_killed_server_are_freed_and_those_of_a_living_one_kept(
    tmp_path: Path, keys: Keys, key: Key
) -> None:
    home = tmp_path / "home"

    def server(how: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", DIES, str(home), how]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    killed = server("dies")
    assert killed.communicate(timeout=60)[0] == "reserved\n"
    peek = Ledger(open_store(home), "peek", Tariff({}))
    assert len(peek.servers()) == 1
    assert refused(lambda: peek.reserve(key.id, "m", 10, 50, free_limit=60)) == "tokens"
    living = server("lives")
    assert living.stdout is not None and living.stdout.readline() == "reserved\n"
    assert len(peek.servers()) == 1  # the living one has freed what the killed one held
    admission = Admission(open_store(home), Settings(home=home))
    assert refused(lambda: admission.ledger.reserve(key.id, "m", 10, 50, free_limit=60)) == "tokens"
    admission.close()
    living.kill()
    living.communicate()
    admission = Admission(open_store(home), Settings(home=home))
    assert admission.ledger.reserve(key.id, "m", 10, 50, free_limit=60)[1] == 50
    admission.close()
    assert not peek.entries(key.id)
