"""The key desk: what `qnext keys` does, in words.

Called by `cli`. Invariant: a wish that makes no sense is a ValueError that names the argument, and nothing
has been changed.
"""

from __future__ import annotations

import argparse
import time

from . import prices
from .admission import Bounds
from .keys import UNLIMITED, Key, Keys
from .ledger import Ledger
from .settings import LIMITS, Settings
from .store import open_store

Options = argparse.Namespace


class KeyDesk:
    """The keys and accounts of the store of `settings`. Each method prints what it did."""

    def __init__(self, settings: Settings) -> None:
        store = open_store(settings.home)
        self._settings = settings
        self._keys = Keys(store)
        self._ledger = Ledger(store, "", settings.tariff)

    def serve(self, options: Options) -> None:
        """`options.action` is the method's name."""
        if options.action in ("list", "show", "revoke") and (_limits(options) or options.top_up):
            raise ValueError(f"{options.action} takes no limits: `qnext keys set NUMBER` changes them")
        getattr(self, options.action)(options)

    def create(self, options: Options) -> None:
        if options.top_up:
            raise ValueError("--top-up is for a key that exists: give --balance")
        key, secret = self._keys.create(options.key or "default", **_limits(options))
        print(f"key {key.id} ({key.name}), shown this once: {secret}")

    def set(self, options: Options) -> None:
        limits, top_up = _limits(options), prices.amount(options.top_up) if options.top_up else 0
        if not limits and not top_up:
            raise ValueError(
                "set needs something to set: --rpm, --tpm, --concurrency, --free-tokens, --balance"
            )
        if "balance" in limits and top_up:
            raise ValueError("--balance and --top-up: give one of them")
        self._print(self._keys.change(_number(options), top_up, **limits))

    def show(self, options: Options) -> None:
        self._print(self._keys.find(_number(options)))

    def list(self, options: Options) -> None:
        for key in self._keys.all():
            state = "revoked" if key.revoked else "valid"
            made = time.strftime("%Y-%m-%d %H:%M", time.localtime(key.created))
            own = [f"{name}={_word(getattr(key, name))}" for name in LIMITS if getattr(key, name) is not None]
            own += [] if key.balance is None else [f"balance={prices.shown(key.balance)}"]
            print(f"{key.id:>4}  sk-…{key.last4}  {made}  {state:<8} {key.name:<16} {' '.join(own)}".rstrip())

    def revoke(self, options: Options) -> None:
        key = self._keys.revoke(_number(options))
        print(f"key {key.id} ({key.name}) is revoked")

    def _print(self, key: Key) -> None:
        """Each limit as it holds, and where it comes from; what was used, by model."""
        bounds = Bounds.of(key, self._settings)
        print(f"key {key.id} ({key.name}), sk-…{key.last4}, {'revoked' if key.revoked else 'valid'}")
        for name in LIMITS:
            own = "its own" if getattr(key, name) is not None else "the server's"
            limit = getattr(bounds, name)
            print(f"  {name:<12} {'none' if limit is None else limit:<10} ({own})")
        print(f"  {'balance':<12} {'none' if key.balance is None else prices.shown(key.balance)}")
        month = self._ledger.month()
        for model, tokens in self._ledger.free_used(key.id, month).items():
            print(f"  {month} {model}: {tokens} free tokens used")
        for model, (count, read, written, cost) in self._ledger.totals(key.id).items():
            used = f"{count} requests, {read} tokens in, {written} out"
            print(f"  in all  {model}: {used}, {prices.shown(cost)} paid")


def _number(options: Options) -> int:
    if options.key is None or not options.key.isdecimal():
        raise ValueError(f"{options.action} needs the number of a key: `qnext keys list` shows them")
    return int(options.key)


def _limits(options: Options) -> dict[str, int | None]:
    """The limits that were given: a number, `none` or `default`."""
    found: dict[str, int | None] = {}
    for name in LIMITS:
        text = getattr(options, name)
        if text is None:
            continue
        if text not in ("none", "default") and not text.isdecimal():
            flag = f"--{name.replace('_', '-')}"
            raise ValueError(f"{flag} {text}: give a number, none (no limit) or default (the server's)")
        found[name] = {"none": UNLIMITED, "default": None}.get(text) if not text.isdecimal() else int(text)
    if options.balance is not None:
        found["balance"] = None if options.balance == "none" else prices.amount(options.balance)
    return found


def _word(limit: int) -> str:
    return "none" if limit == UNLIMITED else str(limit)
