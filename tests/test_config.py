"""Settings into dataclasses: what is accepted, and that every mistake names its file and key."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from qnext import config


@dataclass(frozen=True)
class Part:
    name: str
    weight: float = 1.0


@dataclass(frozen=True)
class Inner:
    rate: float = 0.1
    steps: int = 3
    mode: Literal["fast", "slow"] = "fast"

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be positive, not {self.steps}")


@dataclass(frozen=True)
class Outer:
    name: str
    folder: Path = Path("out")
    quick: bool = False
    limit: int | None = None
    betas: tuple[float, ...] = (0.9, 0.95)
    inner: Inner = field(default_factory=Inner)
    parts: tuple[Part, ...] = ()
    extra: dict[str, Any] = field(default_factory=dict)


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "a.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_reads_every_kind_of_value(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        """
        name = "x"
        folder = "runs/x"
        limit = 4
        betas = [0, 0.5]
        extra = { anything = [1, "two"] }
        inner = { rate = 1, mode = "slow" }
        [[parts]]
        name = "tales"
        [[parts]]
        name = "sums"
        weight = 2
        """,
    )
    assert config.load(Outer, path) == Outer(
        name="x",
        folder=Path("runs/x"),
        limit=4,
        betas=(0.0, 0.5),
        extra={"anything": [1, "two"]},
        inner=Inner(rate=1.0, mode="slow"),
        parts=(Part("tales"), Part("sums", 2.0)),
    )


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("name=../a/b", Outer("../a/b")),
        ("name=2026-01-01", Outer("2026-01-01")),
        ('name="5"', Outer("5")),
        ("inner.steps=7", Outer("x", inner=Inner(steps=7))),
        ("quick=true", Outer("x", quick=True)),
        ("betas=[0.5]", Outer("x", betas=(0.5,))),
        ("name=a=b", Outer("a=b")),
        ("name=1\nquick = true", Outer("1\nquick = true")),  # an override sets its own key only
    ],
)
def test_overrides(tmp_path: Path, override: str, expected: Outer) -> None:
    assert config.load(Outer, write(tmp_path, 'name = "x"'), [override]) == expected


def test_later_override_wins_and_no_file_is_needed() -> None:
    assert config.load(Outer, None, ["name=a", "name=b"]) == Outer("b")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "a.toml: missing key 'name'"),
        ("nam = 'x'", "unknown key 'nam'; did you mean 'name'"),
        ("name='x'\nzzzz=1", "unknown key 'zzzz'; known keys: 'betas', 'extra'"),
        ("name='x'\ninner.stepps=1", "unknown key 'inner.stepps'; did you mean 'inner.steps'"),
        ("name=1", "'name' must be a string, not 1"),
        ("name='x'\nquick=1", "'quick' must be true or false"),
        ("name='x'\nlimit=true", "'limit' must be a whole number, not True"),
        ("name='x'\nlimit=1.5", "'limit' must be a whole number"),
        ("name='x'\nbetas=0.5", "'betas' must be an array"),
        ("name='x'\nbetas=['a']", r"'betas\[0\]' must be a number"),
        ("name='x'\ninner=3", "'inner' must be a table"),
        ("name='x'\ninner.mode='odd'", "'inner.mode' must be one of 'fast', 'slow', not 'odd'"),
        ("name='x'\ninner.steps=0", "a.toml: inner: steps must be positive"),
        ("name='x'\n[[parts]]\nweight=1", r"missing key 'parts\[0\].name'"),
        ("name=", "a.toml: Invalid value"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config.load(Outer, write(tmp_path, text))


@pytest.mark.parametrize("override", ["name", "=3", "a..b=1", "name.first=3"])
def test_broken_overrides(tmp_path: Path, override: str) -> None:
    with pytest.raises(ValueError, match="override"):
        config.load(Outer, write(tmp_path, "name = 'x'"), [override])


def test_missing_file() -> None:
    with pytest.raises(ValueError, match=r"nowhere\.toml: no such file"):
        config.load(Outer, "nowhere.toml")
