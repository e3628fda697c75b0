"""Alembic migrations: one numbered file per change of the schema, run at start by `storage.schema`."""
