"""Settings files: a TOML table plus `key=value` overrides, turned into a frozen dataclass.

Called by train.recipe and by the server's settings. Invariant: nothing is dropped and nothing is guessed.
A key that the dataclass does not have, a value of another type or a missing required key is a `ValueError`
that names the file and the key.
"""

import datetime
import difflib
import tomllib
import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")

_KINDS = {str: "a string", int: "a whole number", float: "a number", bool: "true or false"}


def load(cls: type[T], path: str | Path | None, overrides: Sequence[str] = ()) -> T:
    """Read the TOML file at `path` (None: start empty), apply `a.b=value` overrides, and build a `cls`.

    A value is read as TOML; what is no TOML value is taken as the bare string. Raises ValueError.
    """
    table: dict[str, Any] = {}
    where = "settings" if path is None else str(path)
    if path is not None:
        try:
            table = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ValueError(f"{path}: no such file") from None
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise ValueError(f"{path}: {error}") from None
    for override in overrides:
        _apply(table, override)
    return build(cls, table, where)


def build(cls: type[T], table: Mapping[str, Any], where: str, prefix: str = "") -> T:
    """Build the dataclass `cls` from `table`. `where` (the file) and `prefix` (`data.`) serve the errors.

    Nested dataclasses come from tables, tuples from arrays, tuples of dataclasses from arrays of tables.
    """
    assert is_dataclass(cls)
    known: dict[str, Field[Any]] = {field.name: field for field in fields(cls) if field.init}
    for key in table:
        if key not in known:
            raise ValueError(f"{where}: unknown key '{prefix}{key}'; {_nearest(key, known, prefix)}")
    hints = get_type_hints(cls)
    values: dict[str, Any] = {}
    for name, field in known.items():
        if name in table:
            values[name] = _convert(hints[name], table[name], where, prefix + name)
        elif field.default is MISSING and field.default_factory is MISSING:
            raise ValueError(f"{where}: missing key '{prefix}{name}'")
    try:
        return cls(**values)
    except ValueError as error:
        raise ValueError(f"{where}: {prefix.rstrip('.') + ': ' if prefix else ''}{error}") from None


def _apply(table: dict[str, Any], override: str) -> None:
    """Put one `a.b=value` into the nested `table`, in place."""
    key, equals, text = override.partition("=")
    path = key.strip().split(".")
    if not equals or not all(path):
        raise ValueError(f"override '{override}': expected key=value, such as optim.clip=0.5")
    for part in path[:-1]:
        inner = table.setdefault(part, {})
        if not isinstance(inner, dict):
            raise ValueError(f"override '{override}': '{part}' is a value, not a table")
        table = inner
    table[path[-1]] = _parse(text.strip())


def _parse(text: str) -> Any:
    try:
        document = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    value = document["value"]
    # A date is valid TOML, but no setting of ours is one: `name=2026-01-01` means the string.
    bare = isinstance(value, datetime.date | datetime.time) or len(document) > 1
    return text if bare else value


def _convert(hint: Any, value: Any, where: str, key: str) -> Any:
    """Check `value` (as TOML gave it) against the annotation `hint`; returns it in the annotated type."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        assert len(arguments) == 2 and type(None) in arguments, f"{key}: only X | None is supported"
        return _convert(next(a for a in arguments if a is not type(None)), value, where, key)
    if origin is Literal:
        if value not in arguments:
            raise ValueError(
                f"{where}: '{key}' must be one of {', '.join(map(repr, arguments))}, not {value!r}"
            )
        return value
    if origin is tuple:
        assert arguments[1:] == (...,), f"{key}: only tuple[X, ...] is supported"
        if not isinstance(value, list):
            raise ValueError(f"{where}: '{key}' must be an array, not {value!r}")
        return tuple(_convert(arguments[0], item, where, f"{key}[{i}]") for i, item in enumerate(value))
    if hint is dict or origin is dict or is_dataclass(hint):
        if not isinstance(value, dict):
            raise ValueError(f"{where}: '{key}' must be a table, not {value!r}")
        if is_dataclass(hint):
            assert isinstance(hint, type)
            return build(hint, value, where, f"{key}.")
        inner = arguments[1] if arguments else Any
        return {name: _convert(inner, item, where, f"{key}.{name}") for name, item in value.items()}
    return _scalar(hint, value, where, key)


def _scalar(hint: Any, value: Any, where: str, key: str) -> Any:
    if hint is Path and isinstance(value, str):
        return Path(value)
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:  # type(), because True is an int to isinstance
        raise ValueError(f"{where}: '{key}' must be {_KINDS.get(hint, hint)}, not {value!r}")
    return value


def _nearest(key: str, known: Mapping[str, object], prefix: str) -> str:
    near = difflib.get_close_matches(key, known, n=3, cutoff=0.5)
    names = [f"'{prefix}{name}'" for name in near or sorted(known)]
    return f"did you mean {' or '.join(names)}?" if near else f"known keys: {', '.join(names)}"
