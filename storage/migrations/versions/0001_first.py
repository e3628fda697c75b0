"""The tables of the first version."""

from alembic import op

from storage.schema import TABLES

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    TABLES.create_all(op.get_bind())
