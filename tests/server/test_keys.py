from __future__ import annotations

import hashlib
import re
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from qnext.server.keys import Key, Keys
from qnext.server.store import open_store


def test_a_key_works_until_it_is_revoked(keys: Keys) -> None:
    key, secret = keys.create("mine")
    assert re.fullmatch("sk-[0-9a-f]{32}", secret) and key.last4 == secret[-4:]
    assert keys.verify(secret) == key and keys.verify(secret + "0") is None and keys.verify("") is None
    revoked = keys.revoke(key.id)
    assert revoked.revoked is not None and keys.verify(secret) is None
    with pytest.raises(ValueError, match=f"key {key.id}"):
        keys.revoke(key.id)
    assert keys.all() == [revoked]


def test_the_first_start_makes_one_key(keys: Keys) -> None:
    secret = keys.first()
    assert secret is not None and keys.verify(secret) is not None
    assert keys.first() is None and len(keys.all()) == 1
    keys.revoke(1)
    assert keys.first() is None  # a revoked key is no reason to hand out another


def test_no_secret_is_stored(keys: Keys, tmp_path: Path) -> None:
    _, secret = keys.create()
    with sqlite3.connect(tmp_path / "home" / "qnext.db") as connection:
        rows = connection.execute("SELECT * FROM keys").fetchall()
    connection.close()
    assert secret not in str(rows) and secret[3:] not in str(rows)
    assert (tmp_path / "home" / "qnext.db").stat().st_mode & 0o077 == 0


def test_keys_outlive_the_process_and_are_shared(keys: Keys, tmp_path: Path) -> None:
    _, secret = keys.create("kept")
    other = Keys(open_store(tmp_path / "home"))
    key = other.verify(secret)
    assert key is not None and key.name == "kept"
    other.revoke(key.id)
    assert keys.verify(secret) is None


def test_many_threads(keys: Keys) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda i: keys.create(f"key {i}"), range(16)))
        found = list(pool.map(keys.verify, [secret for _, secret in made]))
    assert found == [key for key, _ in made] and len({secret for _, secret in made}) == 16


def test_a_home_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="QNEXT_HOME"):
        open_store(tmp_path / "file" / "home")


def test_a_store_of_an_earlier_version_gets_the_columns_it_lacks(tmp_path: Path) -> None:
    home = tmp_path / "old"
    home.mkdir()
    with sqlite3.connect(home / "qnext.db") as connection:
        connection.execute(
            "CREATE TABLE keys (id INTEGER PRIMARY KEY, name VARCHAR NOT NULL,"
            " digest VARCHAR(64) NOT NULL UNIQUE, last4 VARCHAR(4) NOT NULL,"
            " created FLOAT NOT NULL, revoked FLOAT)"
        )
        digest = hashlib.sha256(b"sk-old").hexdigest()
        connection.execute("INSERT INTO keys VALUES (1, 'old', ?, '-old', 1.5, NULL)", (digest,))
    connection.close()
    for _ in range(2):
        keys = Keys(open_store(home))
        key = keys.verify("sk-old")
        assert key == Key(1, "old", "-old", 1.5)
    assert keys.change(1, rpm=5, balance=7).balance == 7
