"""The store: one SQLite file under the server's home, reached through SQLAlchemy.

Opened by `cli` and by tests, used by `keys` and `ledger`. Invariant: readers never wait for a writer (WAL),
and the file and its folder are for their owner alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sqlalchemy import Engine, MetaData, create_engine, event, inspect, text

METADATA = MetaData()


def open_store(home: Path) -> Engine:
    """The database `qnext.db` in folder `home`, both made when absent. Raises ValueError when they cannot
    be."""
    path = home / "qnext.db"
    try:
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.touch(mode=0o600)
    except OSError as error:
        raise ValueError(f"QNEXT_HOME: cannot write {path} ({error.strerror}): give another folder") from None
    engine = create_engine(f"sqlite:///{path}", connect_args={"timeout": 10})

    @event.listens_for(engine, "connect")
    def _configure(connection: Any, _record: Any) -> None:
        for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}")

    METADATA.create_all(engine)
    _add_columns(engine)
    return engine


def _add_columns(engine: Engine) -> None:
    """Gives tables of an earlier version the columns they lack; such columns may be null."""
    known = inspect(engine)
    for table in METADATA.sorted_tables:
        present = {column["name"] for column in known.get_columns(table.name)}
        for column in table.columns:
            if column.name not in present:
                kind = column.type.compile(engine.dialect)
                with engine.begin() as connection:
                    connection.execute(text(f"ALTER TABLE {table.name} ADD COLUMN {column.name} {kind}"))
