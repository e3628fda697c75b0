"""The cohort of densities and texture features, and the audit trail of the models made of it."""

from alembic import op

from storage.cohort_tables import CohortStudyRow, CohortVertebraRow, RadiomicsModelRow
from storage.schema import TABLES

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Nothing where the first version made them already, in a new database."""
    tables = [row.__table__ for row in (CohortStudyRow, CohortVertebraRow, RadiomicsModelRow)]
    TABLES.create_all(op.get_bind(), tables=tables)
