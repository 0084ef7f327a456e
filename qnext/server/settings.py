"""The settings of a server: where it listens, where its state lives, what it allows and assumes.

Made by `cli` from the environment (`QNEXT_PORT`, `QNEXT_HOME`, ...: the field's name in capitals), read by
every file of the server. Invariant: a `Settings` that exists holds sane values; a wrong one is refused by
name.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from platformdirs import user_data_path

from .prices import Price, Tariff, prices

HOSTED_NAMES = {
    "qwen3-next-80b-a3b-instruct": "tiny-instruct",
    "qwen3-next-80b-a3b-thinking": "tiny-thinking",
    "qwen3-next-80b-a3b-base": "tiny-base",
}
# What the hosted service gives every key: requests and tokens a minute, free tokens a month and model.
HOSTED_LIMITS = {"rpm": 600, "tpm": 1_000_000, "free_tokens": 1_000_000}
LIMITS = ("rpm", "tpm", "concurrency", "free_tokens")


_COUNTS = {
    "max_context": "tokens",
    "max_output_tokens": "tokens",
    "max_thinking_tokens": "tokens",
    "max_body_bytes": "bytes",
    "max_file_bytes": "bytes",
    "max_stored_bytes": "bytes",
    "max_batch_lines": "lines",
    "max_line_bytes": "bytes",
    "max_batches": "batches",
    "batch_concurrency": "lines",
}


@dataclass(frozen=True)
class Settings:
    """`aliases` maps names that clients may ask for to the model that answers; an alias of a model that is
    not loaded is not served. `presence_penalty` is what a request that gives none gets (the hosted service:
    1.5 for instruct). `max_context` caps the context of every model, in tokens. `max_output_tokens` and
    `max_thinking_tokens` are the largest values a request may ask for. `keep_alive` is the silence, in
    seconds, after which a stream gets a comment line; a request that takes longer than `request_timeout`
    seconds (None: however long) fails. Stored responses are kept for `response_days`. A stop signal lets
    answers finish for `drain_seconds`.

    `rpm`, `tpm` (requests and tokens a minute), `concurrency` (answers at once) and `free_tokens` (a month
    and model) hold for keys that say nothing of their own; None is no limit, or, where `limits` is "hosted",
    what the hosted service gives. `prices` are by model; of them a prompt's token that the cache held costs
    `cached_percent`, and what batches ask `batch_percent`. `limits_storage` is where rates are counted:
    memory, or `redis://…` for several servers.

    A stored file has at most `max_file_bytes`, all files that one key uploaded together `max_stored_bytes`. A
    batch has at most `max_batch_lines` lines of `max_line_bytes` each, a key at most `max_batches` that have
    not ended; of all batches `batch_concurrency` lines are answered at once. Raises ValueError naming the
    environment variable.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    home: Path = field(default_factory=lambda: user_data_path("qnext"))
    aliases: Mapping[str, str] = field(default_factory=lambda: dict(HOSTED_NAMES))
    presence_penalty: float = 0.0
    max_context: int | None = None
    max_output_tokens: int = 32_768
    max_thinking_tokens: int = 81_920
    max_body_bytes: int = 16 * 2**20
    keep_alive: float = 15.0
    request_timeout: float | None = None
    thinking_non_stream: Literal["allow", "reject"] = "allow"
    response_days: float = 30.0
    drain_seconds: float = 20.0
    client_timeout: float = 30.0
    limits: Literal["off", "hosted"] = "off"
    rpm: int | None = None
    tpm: int | None = None
    concurrency: int | None = None
    free_tokens: int | None = None
    prices: Mapping[str, Price] = field(default_factory=lambda: prices("0.15/1.2"))
    cached_percent: int = 20
    batch_percent: int = 50
    limits_storage: str = "memory://"
    max_file_bytes: int = 500 * 2**20
    max_stored_bytes: int = 10 * 2**30
    max_batch_lines: int = 50_000
    max_line_bytes: int = 6 * 2**20
    max_batches: int = 100
    batch_concurrency: int = 4

    def __post_init__(self) -> None:
        _require(bool(self.host), "host", "an address such as 127.0.0.1", self.host)
        _require(0 <= self.port < 65536, "port", "a number from 0 to 65535", self.port)
        _require(-2 <= self.presence_penalty <= 2, "presence_penalty", "-2 to 2", self.presence_penalty)
        for name in (*_COUNTS, "rpm", "tpm", "concurrency"):
            value = getattr(self, name)
            _require(value is None or value >= 1, name, "1 or more", value)
        _require((self.free_tokens or 0) >= 0, "free_tokens", "0 or more", self.free_tokens)
        for name in ("cached_percent", "batch_percent"):
            value = getattr(self, name)
            _require(0 <= value <= 100, name, "0 to 100", value)
        try:
            assert self.tariff
        except ValueError as error:
            raise ValueError(f"{variable('prices')}: {error}") from None
        _require(self.limits in ("off", "hosted"), "limits", "off or hosted", self.limits)
        for name in ("keep_alive", "request_timeout", "drain_seconds", "client_timeout"):
            value = getattr(self, name)
            _require(value is None or 0 < value < float("inf"), name, "seconds, more than 0", value)
        days = self.response_days
        _require(0 < days < float("inf"), "response_days", "days, more than 0", days)
        thinking = self.thinking_non_stream
        _require(thinking in ("allow", "reject"), "thinking_non_stream", "allow or reject", thinking)

    @cached_property
    def tariff(self) -> Tariff:
        return Tariff(self.prices, self.cached_percent, self.batch_percent)

    def limit(self, name: str) -> int | None:
        """One of `LIMITS` for a key that says nothing of its own; None for no limit."""
        given: int | None = getattr(self, name)
        return HOSTED_LIMITS.get(name) if given is None and self.limits == "hosted" else given

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> Settings:
        """Defaults, overridden by the variables that are set and not empty."""
        given: dict[str, Any] = {}
        for name, (read, wanted) in _READERS.items():
            text = environ.get(variable(name), "")
            if not text:
                continue
            try:
                given[name] = read(text)
            except ValueError:
                raise ValueError(f"{variable(name)} is {text!r}: give {wanted}") from None
        return replace(cls(), **given)


def variable(name: str) -> str:
    """The environment variable of a field."""
    return f"QNEXT_{name.upper()}"


def _require(ok: bool, name: str, wanted: str, value: object) -> None:
    if not ok:
        raise ValueError(f"{variable(name)} is {value!r}: give {wanted}")


def _aliases(text: str) -> dict[str, str]:
    """`name=model,name=model`, added to the hosted names."""
    pairs = [part.split("=", 1) for part in text.split(",") if part.strip()]
    if not all(len(pair) == 2 and pair[0].strip() and pair[1].strip() for pair in pairs):
        raise ValueError
    return HOSTED_NAMES | {name.strip(): model.strip() for name, model in pairs}


_READERS: dict[str, tuple[Callable[[str], Any], str]] = {
    "host": (str, "an address"),
    "port": (int, "a number from 0 to 65535"),
    "home": (lambda text: Path(text).expanduser(), "a folder"),
    "aliases": (_aliases, "name=model pairs separated by commas"),
    "presence_penalty": (float, "a number from -2 to 2"),
    **{name: (int, f"a number of {unit}") for name, unit in _COUNTS.items()},
    "keep_alive": (float, "a number of seconds"),
    "request_timeout": (float, "a number of seconds"),
    "thinking_non_stream": (str, "allow or reject"),
    "response_days": (float, "a number of days"),
    "drain_seconds": (float, "a number of seconds"),
    "client_timeout": (float, "a number of seconds"),
    "limits": (str, "off or hosted"),
    "rpm": (int, "a number of requests"),
    "tpm": (int, "a number of tokens"),
    "concurrency": (int, "a number of answers"),
    "free_tokens": (int, "a number of tokens"),
    "prices": (prices, "INPUT/OUTPUT per million tokens, such as 0.15/1.2, or MODEL=INPUT/OUTPUT pairs"),
    "cached_percent": (int, "a number of percent"),
    "batch_percent": (int, "a number of percent"),
    "limits_storage": (str, "memory:// or redis://HOST:PORT"),
}
assert set(_READERS) == {spec.name for spec in fields(Settings)}
