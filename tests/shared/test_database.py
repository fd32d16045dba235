"""Databases: migrated forward, set aside when broken, refused when newer."""

import logging
import sqlite3
from pathlib import Path

import pytest

from shared.database import NewerDatabaseError, open_database

LOG = logging.getLogger("test")
FIRST = "CREATE TABLE a (x)"
SECOND = "ALTER TABLE a ADD COLUMN y"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "some.db"


def columns(database: sqlite3.Connection) -> list[str]:
    return [row[1] for row in database.execute("PRAGMA table_info(a)")]


def test_a_new_one_has_the_whole_schema_and_is_durable(path: Path) -> None:
    database = open_database(path, [FIRST, SECOND], LOG)
    assert columns(database) == ["x", "y"]
    assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert database.execute("PRAGMA synchronous").fetchone() == (2,)
    database.close()


def test_an_older_one_is_migrated_and_keeps_its_rows(path: Path) -> None:
    database = open_database(path, [FIRST], LOG)
    database.execute("INSERT INTO a VALUES (1)")
    database.close()
    database = open_database(path, [FIRST, SECOND], LOG, "NORMAL")
    assert database.execute("SELECT x, y FROM a").fetchall() == [(1, None)]
    database.close()


def test_a_newer_one_is_refused_and_left_as_it_is(path: Path) -> None:
    open_database(path, [FIRST, SECOND], LOG).close()
    with pytest.raises(NewerDatabaseError, match="has version 2, this program knows 1"):
        open_database(path, [FIRST], LOG)
    database = open_database(path, [FIRST, SECOND], LOG)
    assert columns(database) == ["x", "y"]
    database.close()


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda raw: b"garbage" * 1000, id="garbage"),
        pytest.param(lambda raw: raw[:5000] + b"\0" * 3000, id="a page wiped"),
        pytest.param(lambda raw: raw[: len(raw) // 2 - 100], id="cut"),
    ],
)
def test_a_broken_one_is_set_aside_with_a_message(
    path: Path, damage: object, caplog: pytest.LogCaptureFixture
) -> None:
    database = open_database(path, [FIRST], LOG)
    database.executemany("INSERT INTO a VALUES (?)", [("x" * 500,)] * 100)
    database.close()
    assert callable(damage)
    broken = damage(path.read_bytes())
    path.write_bytes(broken)
    database = open_database(path, [FIRST], LOG)
    assert database.execute("SELECT count(*) FROM a").fetchone() == (0,)
    database.close()
    (aside,) = path.parent.glob("some.db.broken-*")
    assert aside.read_bytes() == broken
    assert "is broken" in caplog.text
    assert aside.name in caplog.text


def test_a_migration_that_fails_changes_nothing(path: Path) -> None:
    open_database(path, [FIRST], LOG).close()
    with pytest.raises(sqlite3.OperationalError):
        open_database(path, [FIRST, "ALTER TABLE a ADD COLUMN y; CREATE TABLE a (z)"], LOG)
    database = open_database(path, [FIRST], LOG)
    assert columns(database) == ["x"]
    database.close()


def test_a_place_that_cannot_be_written_is_no_broken_file(tmp_path: Path) -> None:
    with pytest.raises(sqlite3.OperationalError):
        open_database(tmp_path / "missing" / "some.db", [FIRST], LOG)
