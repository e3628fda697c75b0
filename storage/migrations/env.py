"""Alembic's entry: migrations run on the connection that `storage.schema` hands over."""

from alembic import context

from storage.schema import TABLES

context.configure(
    connection=context.config.attributes["connection"], target_metadata=TABLES, render_as_batch=True, compare_type=True
)
with context.begin_transaction():
    context.run_migrations()
