from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qnext.server.settings import LIMITS, Settings


def test_defaults_hold_in_an_empty_environment() -> None:
    settings = Settings.from_env({"QNEXT_PORT": "", "PORT": "1"})
    assert settings == Settings()
    assert settings.aliases["qwen3-next-80b-a3b-thinking"] == "tiny-thinking"
    assert settings.home.name == "qnext" and settings.presence_penalty == 0


def test_the_environment_decides() -> None:
    settings = Settings.from_env(
        {
            "QNEXT_HOST": "0.0.0.0",
            "QNEXT_PORT": "80",
            "QNEXT_HOME": "~/somewhere",
            "QNEXT_ALIASES": "mine=tiny-base, gpt-4o = tiny-instruct",
            "QNEXT_PRESENCE_PENALTY": "1.5",
            "QNEXT_MAX_CONTEXT": "4096",
            "QNEXT_REQUEST_TIMEOUT": "300",
            "QNEXT_THINKING_NON_STREAM": "reject",
        }
    )
    assert (settings.host, settings.port, settings.max_context) == ("0.0.0.0", 80, 4096)
    assert settings.home == Path.home() / "somewhere"
    assert settings.aliases["gpt-4o"] == "tiny-instruct" and settings.aliases["mine"] == "tiny-base"
    assert "qwen3-next-80b-a3b-base" in settings.aliases
    assert (settings.presence_penalty, settings.thinking_non_stream) == (1.5, "reject")
    assert settings.request_timeout == 300 and Settings().request_timeout is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("QNEXT_PORT", "eighty"),
        ("QNEXT_PORT", "65536"),
        ("QNEXT_ALIASES", "mine"),
        ("QNEXT_ALIASES", "=tiny-base"),
        ("QNEXT_PRESENCE_PENALTY", "2.5"),
        ("QNEXT_PRESENCE_PENALTY", "nan"),
        ("QNEXT_MAX_CONTEXT", "0"),
        ("QNEXT_MAX_BODY_BYTES", "1e6"),
        ("QNEXT_KEEP_ALIVE", "0"),
        ("QNEXT_KEEP_ALIVE", "inf"),
        ("QNEXT_REQUEST_TIMEOUT", "0"),
        ("QNEXT_THINKING_NON_STREAM", "maybe"),
        ("QNEXT_LIMITS", "on"),
        ("QNEXT_RPM", "0"),
        ("QNEXT_TPM", "1e6"),
        ("QNEXT_CONCURRENCY", "-1"),
        ("QNEXT_FREE_TOKENS", "-1"),
        ("QNEXT_PRICES", "cheap"),
        ("QNEXT_CACHED_PERCENT", "101"),
        ("QNEXT_BATCH_PERCENT", "-1"),
        ("QNEXT_BATCH_PERCENT", "half"),
        ("QNEXT_DRAIN_SECONDS", "0"),
        ("QNEXT_RESPONSE_DAYS", "0"),
    ],
)
def test_a_wrong_value_is_refused_by_name(name: str, value: str) -> None:
    with pytest.raises(ValueError, match=rf"^{name} is .*: give "):
        Settings.from_env({name: value})


@pytest.mark.parametrize("wrong", [{"port": -1}, {"host": ""}, {"max_output_tokens": 0}])
def test_a_wrong_argument_is_refused_too(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"^QNEXT_\w+ is .*: give "):
        Settings(**wrong)


def test_limits_are_off_until_they_are_set() -> None:
    assert [Settings().limit(name) for name in LIMITS] == [None] * 4
    hosted = Settings.from_env({"QNEXT_LIMITS": "hosted", "QNEXT_TPM": "5000", "QNEXT_PRICES": "1/2,m=3/4"})
    assert [hosted.limit(name) for name in LIMITS] == [600, 5000, None, 1_000_000]
    price = hosted.tariff.price
    assert price("m", batch=False).input == 3_000_000 and price("x", batch=True).output == 1_000_000
    assert price("m", batch=False).cached == 600_000


def test_percents_that_leave_no_whole_price() -> None:
    with pytest.raises(ValueError, match=r"^QNEXT_PRICES: 33 percent of .*: give a price with fewer"):
        Settings.from_env({"QNEXT_PRICES": "0.000001/1", "QNEXT_CACHED_PERCENT": "33"})
