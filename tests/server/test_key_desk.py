from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from qnext.cli import main
from qnext.server.keys import UNLIMITED, Keys
from qnext.server.ledger import Entry, Ledger
from qnext.server.prices import UNIT, Tariff, prices
from qnext.server.store import open_store

Say = Callable[..., str]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("QNEXT_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def say(home: Path, capsys: pytest.CaptureFixture[str]) -> Say:
    """Runs `qnext keys` and returns what it printed."""

    def run(*words: str) -> str:
        code = main(["keys", *words])
        printed = capsys.readouterr()
        return printed.out if code == 0 else printed.err

    return run


def test_limits_are_set_and_shown(say: Say, home: Path) -> None:
    assert "shown this once: sk-" in say(
        "create", "shop", "--rpm", "60", "--tpm", "none", "--balance", "12.50", "--free-tokens", "1000"
    )
    key = Keys(open_store(home)).find(1)
    assert (key.rpm, key.tpm, key.concurrency, key.free_tokens) == (60, UNLIMITED, None, 1000)
    assert key.balance == 25 * UNIT // 2
    shown = say("set", "1", "--rpm", "default", "--concurrency", "3", "--top-up", "0.5")
    assert shown == say("show", "1")
    assert [line.split() for line in shown.splitlines()[1:]] == [
        ["rpm", "none", "(the", "server's)"],
        ["tpm", "none", "(its", "own)"],
        ["concurrency", "3", "(its", "own)"],
        ["free_tokens", "1000", "(its", "own)"],
        ["balance", "13.00"],
    ]
    assert (
        say("list")
        .rstrip()
        .endswith("shop             tpm=none concurrency=3 free_tokens=1000 balance=13.00")
    )
    say("set", "1", "--balance", "none")
    assert Keys(open_store(home)).find(1).balance is None


def test_the_servers_limits_are_shown_where_a_key_has_none(say: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    say("create")
    assert "free_tokens  none" in say("show", "1")
    monkeypatch.setenv("QNEXT_LIMITS", "hosted")
    monkeypatch.setenv("QNEXT_RPM", "7")
    shown = say("show", "1")
    assert (
        "rpm          7 " in shown and "tpm          1000000 " in shown and "free_tokens  1000000 " in shown
    )


def test_what_was_used_is_shown(say: Say, home: Path) -> None:
    say("create", "--free-tokens", "100", "--balance", "1")
    ledger = Ledger(open_store(home), "test", Tariff(prices("1/10")))
    number, _ = ledger.reserve(1, "tiny", 90, 500, free_limit=100)
    ledger.settle(number, Entry(0.0, 1, "tiny", "r", 90, 110, "ok"))
    shown = say("show", "1")
    assert f"{ledger.month()} tiny: 100 free tokens used" in shown
    assert "tiny: 1 requests, 90 tokens in, 110 out, 0.001 paid" in shown and "balance      0.999" in shown


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["set"], "set needs something to set"),
        (["set", "1"], "set needs something to set"),
        (["set", "x", "--rpm", "1"], "set needs the number of a key"),
        (["show"], "show needs the number of a key"),
        (["show", "9"], "key 9: no key has this id"),
        (["set", "9", "--rpm", "1"], "key 9: no key has this id"),
        (["set", "1", "--rpm", "0"], "rpm is 0: give 1 or more"),
        (["set", "1", "--tpm", "many"], "--tpm many: give a number, none (no limit) or default"),
        (["set", "1", "--free-tokens", "-1"], "--free-tokens -1: give a number"),
        (["set", "1", "--balance", "1e3"], "'1e3' is no amount"),
        (["set", "1", "--balance", "1", "--top-up", "1"], "--balance and --top-up: give one of them"),
        (["set", "1", "--top-up", "1000000"], "the balance would be more than 1000000.00"),
        (["create", "--top-up", "1"], "--top-up is for a key that exists"),
        (["list", "--rpm", "1"], "list takes no limits"),
    ],
)
def test_what_makes_no_sense_is_refused_and_changes_nothing(
    say: Say, home: Path, words: list[str], message: str
) -> None:
    say("create", "--balance", "1")
    before = Keys(open_store(home)).all()
    said = say(*words)
    assert said.startswith("qnext keys: ") and message in said and said.count("\n") == 1
    assert Keys(open_store(home)).all() == before
