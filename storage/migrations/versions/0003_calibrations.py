"""The calibrations: phantom scans, declarations, epochs and registered phantoms."""

from alembic import op

from storage import calibration_tables as tables
from storage.schema import TABLES

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

ROWS = (
    tables.CalibrationRow,
    tables.CalibrationRodRow,
    tables.CalibrationGateRow,
    tables.CalibrationReasonRow,
    tables.CommissioningRow,
    tables.EpochRow,
    tables.PhantomRow,
    tables.FailedPhantomScanRow,
)


def upgrade() -> None:
    """Nothing where the first version made them already, in a new database."""
    TABLES.create_all(op.get_bind(), tables=[row.__table__ for row in ROWS])
