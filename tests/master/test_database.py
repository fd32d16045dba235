"""The schema: what the migrations make is what the tables say."""

from pathlib import Path

import alembic.migration
import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata

from procs.master.database import DatabaseError, open_database, sqlite_engine
from procs.master.tables import METADATA


def test_the_migrations_make_the_tables(tmp_path: Path) -> None:
    open_database(tmp_path / "master.db").close()
    open_database(tmp_path / "master.db").close()  # again: nothing to do
    engine = sqlite_engine(tmp_path / "master.db")
    with engine.connect() as connection:
        context = alembic.migration.MigrationContext.configure(connection)
        assert compare_metadata(context, METADATA) == []
    engine.dispose()


def test_a_newer_database_is_refused(tmp_path: Path) -> None:
    open_database(tmp_path / "master.db").close()
    engine = sqlite_engine(tmp_path / "master.db")
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    engine.dispose()
    with pytest.raises(DatabaseError, match="9999"):
        open_database(tmp_path / "master.db")
