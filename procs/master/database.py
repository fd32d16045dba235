"""The door to the database: opening, migrating, and one transaction after the other.

All that is SQLite's own stands in this file. Functions that take a connection run in one thread,
each in a transaction of its own; a caller that goes away does not undo what it began.
"""

import asyncio
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

import alembic.command
import alembic.config
import alembic.util
import sqlalchemy as sa

CHECKPOINT = "wal_autocheckpoint=8000"  # pages, 32 MB: each syncs twice, in the midst of a log
MIGRATIONS = Path(__file__).parent / "migrations"

P = ParamSpec("P")
R = TypeVar("R")


class DatabaseError(Exception):
    """The database cannot be opened: broken, or written by a newer version."""


class Database:
    """Runs functions on the database, one at a time."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._thread = ThreadPoolExecutor(1, "database")

    async def run(
        self,
        function: Callable[Concatenate[sa.Connection, P], R],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> R:
        """One transaction. It is committed also when the caller is cancelled meanwhile."""

        def transaction() -> R:
            with self._engine.begin() as connection:
                return function(connection, *args, **kwargs)

        return await asyncio.get_running_loop().run_in_executor(self._thread, transaction)

    def close(self) -> None:
        self._thread.shutdown()
        self._engine.dispose()


def open_database(path: Path) -> Database:
    """The database in file `path`, made or migrated as needed."""
    engine = sqlite_engine(path)
    try:
        with engine.connect() as connection:
            _migrate(connection)
    except (sa.exc.DatabaseError, alembic.util.CommandError) as err:
        engine.dispose()
        cause = err.orig if isinstance(err, sa.exc.DatabaseError) else err
        raise DatabaseError(f"cannot use the database {path}: {cause}") from err
    return Database(engine)


def sqlite_engine(path: Path) -> sa.Engine:
    # One thread at a time uses it, though not always the one that opened it.
    engine = sa.create_engine(f"sqlite:///{path}", connect_args={"check_same_thread": False})
    sa.event.listen(engine, "connect", _set_up)
    sa.event.listen(engine, "begin", _begin)
    return engine


def _set_up(connection: sqlite3.Connection, _: object) -> None:
    connection.isolation_level = None  # transactions are ours: begin, also before a schema change
    settings = ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", CHECKPOINT)
    for pragma in settings:
        connection.execute(f"PRAGMA {pragma}").close()


def _begin(connection: sa.Connection) -> None:
    connection.exec_driver_sql("BEGIN")


def _migrate(connection: sa.Connection) -> None:
    config = alembic.config.Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    alembic.command.upgrade(config, "head")
