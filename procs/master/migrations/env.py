"""What Alembic runs: the migrations, on the connection that database.py opened."""

from alembic import context

from procs.master.tables import METADATA

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=METADATA, transactional_ddl=True)
with context.begin_transaction():
    context.run_migrations()
connection.commit()
