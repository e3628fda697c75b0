"""The tables of the first version."""

import sqlalchemy as sa
from alembic import op

from storage.database import UtcDateTime

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    for make in TABLES:
        make()


def _associations() -> None:
    op.create_table(
        "associations",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("calling_ae_title", sa.String(), nullable=False),
        sa.Column("called_ae_title", sa.String(), nullable=False),
        sa.Column("peer_address", sa.String(), nullable=False),
        sa.Column("opened_at", UtcDateTime(), nullable=False),
        sa.Column("closed_at", UtcDateTime(), nullable=True),
        sa.Column("ending", sa.String(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )


def _calibration_epochs() -> None:
    op.create_table(
        "calibration_epochs",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("device_serial_number", sa.String(), nullable=False),
        sa.Column("starts_at", UtcDateTime(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("declared_by", sa.String(), nullable=False),
        sa.Column("declared_at", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index(
        op.f("ix_calibration_epochs_device_serial_number"), "calibration_epochs", ["device_serial_number"], unique=False
    )


def _calibrations() -> None:
    op.create_table(
        "calibrations",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("series_instance_uid", sa.String(length=64), nullable=False),
        sa.Column("key_json", sa.String(), nullable=False),
        sa.Column("device_serial_number", sa.String(), nullable=False),
        sa.Column("phantom_serial", sa.String(), nullable=False),
        sa.Column("acquired_at", UtcDateTime(), nullable=False),
        sa.Column("saved_at", UtcDateTime(), nullable=False),
        sa.Column("accepted", sa.Boolean(), nullable=False),
        sa.Column("sigma_ref", sa.Double(), nullable=False),
        sa.Column("beta_ref", sa.Double(), nullable=False),
        sa.Column("sigma_ct_hu_per_mg_cm3", sa.Double(), nullable=False),
        sa.Column("beta_ct_hu", sa.Double(), nullable=False),
        sa.Column("r2", sa.Double(), nullable=False),
        sa.Column("see_hu", sa.Double(), nullable=False),
        sa.Column("software_version", sa.String(), nullable=False),
        sa.Column("payload_json", sa.String(), nullable=False),
        sa.Column("superseded_by", sa.String(length=64), nullable=True),
        sa.ForeignKeyConstraint(
            ["superseded_by"],
            ["calibrations.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index(op.f("ix_calibrations_acquired_at"), "calibrations", ["acquired_at"], unique=False)
    op.create_index(
        op.f("ix_calibrations_device_serial_number"), "calibrations", ["device_serial_number"], unique=False
    )
    op.create_index("ix_calibrations_key", "calibrations", ["key_json", "acquired_at"], unique=False)
    op.create_index(op.f("ix_calibrations_series_instance_uid"), "calibrations", ["series_instance_uid"], unique=False)
    op.create_index(op.f("ix_calibrations_superseded_by"), "calibrations", ["superseded_by"], unique=False)


def _cohort_studies() -> None:
    op.create_table(
        "cohort_studies",
        sa.Column("study_instance_uid", sa.String(length=64), nullable=False),
        sa.Column("series_instance_uid", sa.String(length=64), nullable=False),
        sa.Column("patient_key", sa.String(length=64), nullable=False),
        sa.Column("acquired", UtcDateTime(), nullable=True),
        sa.Column("saved_at", UtcDateTime(), nullable=False),
        sa.Column("manufacturer", sa.String(), nullable=True),
        sa.Column("manufacturer_model_name", sa.String(), nullable=True),
        sa.Column("device_serial_number", sa.String(), nullable=True),
        sa.Column("kvp", sa.Double(), nullable=True),
        sa.Column("convolution_kernel", sa.String(), nullable=True),
        sa.Column("slice_thickness_mm", sa.Double(), nullable=True),
        sa.Column("spacing_between_slices_mm", sa.Double(), nullable=False),
        sa.Column("pixel_spacing_mm", sa.Double(), nullable=False),
        sa.Column("bmd_mg_cm3", sa.Double(), nullable=False),
        sa.Column("u_bmd_mg_cm3", sa.Double(), nullable=False),
        sa.Column("material", sa.String(length=16), nullable=False),
        sa.Column("classification", sa.String(length=16), nullable=True),
        sa.Column("contract_sha256", sa.String(length=64), nullable=False),
        sa.Column("voi_rule_version", sa.String(), nullable=False),
        sa.Column("software_version", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("study_instance_uid"),
    )
    op.create_index(op.f("ix_cohort_studies_classification"), "cohort_studies", ["classification"], unique=False)
    op.create_index(op.f("ix_cohort_studies_patient_key"), "cohort_studies", ["patient_key"], unique=False)
    op.create_index(op.f("ix_cohort_studies_saved_at"), "cohort_studies", ["saved_at"], unique=False)


def _commissioning_declarations() -> None:
    op.create_table(
        "commissioning_declarations",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("key_json", sa.String(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("declared_by", sa.String(), nullable=False),
        sa.Column("declared_at", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index(
        op.f("ix_commissioning_declarations_key_json"), "commissioning_declarations", ["key_json"], unique=False
    )


def _commitments() -> None:
    op.create_table(
        "commitments",
        sa.Column("transaction_uid", sa.String(length=64), nullable=False),
        sa.Column("destination", sa.String(length=64), nullable=False),
        sa.Column("requested_at", UtcDateTime(), nullable=False),
        sa.Column("answered_at", UtcDateTime(), nullable=True),
        sa.Column("n_objects", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("transaction_uid"),
    )
    op.create_index(op.f("ix_commitments_destination"), "commitments", ["destination"], unique=False)


def _failed_phantom_scans() -> None:
    op.create_table(
        "failed_phantom_scans",
        sa.Column("series_instance_uid", sa.String(length=64), nullable=False),
        sa.Column("device_serial_number", sa.String(), nullable=True),
        sa.Column("phantom_serial", sa.String(), nullable=True),
        sa.Column("acquired_at", UtcDateTime(), nullable=True),
        sa.Column("saved_at", UtcDateTime(), nullable=False),
        sa.Column("code", sa.String(), nullable=False),
        sa.Column("text", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("series_instance_uid"),
    )


def _jobs() -> None:
    op.create_table(
        "jobs",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("study_instance_uid", sa.String(length=64), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("worker_deaths", sa.Integer(), nullable=False),
        sa.Column("orphaned", sa.Integer(), nullable=False),
        sa.Column("queued_at", UtcDateTime(), nullable=False),
        sa.Column("started_at", UtcDateTime(), nullable=True),
        sa.Column("finished_at", UtcDateTime(), nullable=True),
        sa.Column("lease_owner", sa.String(length=128), nullable=True),
        sa.Column("lease_until", UtcDateTime(), nullable=True),
        sa.Column("detail", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("study_instance_uid", "version"),
    )
    op.create_index(op.f("ix_jobs_state"), "jobs", ["state"], unique=False)


def _phantoms() -> None:
    op.create_table(
        "phantoms",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("serial", sa.String(), nullable=False),
        sa.Column("valid_from", UtcDateTime(), nullable=False),
        sa.Column("spec_json", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("serial", "valid_from"),
    )
    op.create_index(op.f("ix_phantoms_serial"), "phantoms", ["serial"], unique=False)


def _quarantine() -> None:
    op.create_table(
        "quarantine",
        sa.Column("path", sa.String(), nullable=False),
        sa.Column("sop_instance_uid", sa.String(), nullable=False),
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("calling_ae_title", sa.String(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("arrived_at", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("path"),
    )


def _radiomics_models() -> None:
    op.create_table(
        "radiomics_models",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("decided_at", UtcDateTime(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("activated", sa.Boolean(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("macro_auc", sa.Double(), nullable=False),
        sa.Column("kept_as", sa.String(), nullable=False),
        sa.Column("replaced_sha256", sa.String(length=64), nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index(op.f("ix_radiomics_models_decided_at"), "radiomics_models", ["decided_at"], unique=False)


def _studies() -> None:
    op.create_table(
        "studies",
        sa.Column("study_instance_uid", sa.String(), nullable=False),
        sa.Column("patient_id", sa.String(), nullable=False),
        sa.Column("accession_number", sa.String(), nullable=False),
        sa.Column("study_description", sa.String(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("taken_version", sa.Integer(), nullable=False),
        sa.Column("version_opened_at", UtcDateTime(), nullable=False),
        sa.Column("first_arrival_at", UtcDateTime(), nullable=False),
        sa.Column("last_arrival_at", UtcDateTime(), nullable=False),
        sa.Column("delivered_version", sa.Integer(), nullable=False),
        sa.Column("delivered_at", UtcDateTime(), nullable=True),
        sa.Column("released_version", sa.Integer(), nullable=False),
        sa.Column("conflict", sa.String(), nullable=True),
        sa.PrimaryKeyConstraint("study_instance_uid"),
    )


def _study_results() -> None:
    op.create_table(
        "study_results",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("study_instance_uid", sa.String(length=64), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("series_instance_uid", sa.String(length=64), nullable=True),
        sa.Column("reasons_json", sa.String(), nullable=False),
        sa.Column("report_json", sa.String(), nullable=False),
        sa.Column("provisional", sa.Boolean(), nullable=False),
        sa.Column("finished_at", UtcDateTime(), nullable=False),
        sa.Column("superseded_by", sa.Integer(), nullable=True),
        sa.Column("hold_reason", sa.String(), nullable=True),
        sa.ForeignKeyConstraint(
            ["superseded_by"],
            ["study_results.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("study_instance_uid", "version", "revision"),
    )
    op.create_index(op.f("ix_study_results_finished_at"), "study_results", ["finished_at"], unique=False)
    op.create_index(op.f("ix_study_results_study_instance_uid"), "study_results", ["study_instance_uid"], unique=False)
    op.create_index(op.f("ix_study_results_superseded_by"), "study_results", ["superseded_by"], unique=False)


def _calibration_gates() -> None:
    op.create_table(
        "calibration_gates",
        sa.Column("calibration_id", sa.String(length=64), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("value", sa.Double(), nullable=False),
        sa.Column("low", sa.Double(), nullable=True),
        sa.Column("high", sa.Double(), nullable=True),
        sa.Column("passed", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(
            ["calibration_id"],
            ["calibrations.id"],
        ),
        sa.PrimaryKeyConstraint("calibration_id", "position"),
    )


def _calibration_reasons() -> None:
    op.create_table(
        "calibration_reasons",
        sa.Column("calibration_id", sa.String(length=64), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("code", sa.String(), nullable=False),
        sa.Column("text", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(
            ["calibration_id"],
            ["calibrations.id"],
        ),
        sa.PrimaryKeyConstraint("calibration_id", "position"),
    )


def _calibration_rods() -> None:
    op.create_table(
        "calibration_rods",
        sa.Column("calibration_id", sa.String(length=64), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("hu", sa.Double(), nullable=False),
        sa.Column("sd_hu", sa.Double(), nullable=False),
        sa.Column("n_voxels", sa.Integer(), nullable=False),
        sa.Column("standard_error_hu", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(
            ["calibration_id"],
            ["calibrations.id"],
        ),
        sa.PrimaryKeyConstraint("calibration_id", "position"),
    )


def _cohort_vertebrae() -> None:
    op.create_table(
        "cohort_vertebrae",
        sa.Column("study_instance_uid", sa.String(length=64), nullable=False),
        sa.Column("level", sa.String(length=8), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("n_voxels", sa.Integer(), nullable=False),
        sa.Column("features_json", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(
            ["study_instance_uid"],
            ["cohort_studies.study_instance_uid"],
        ),
        sa.PrimaryKeyConstraint("study_instance_uid", "level"),
    )


def _instances() -> None:
    op.create_table(
        "instances",
        sa.Column("sop_instance_uid", sa.String(), nullable=False),
        sa.Column("study_instance_uid", sa.String(), nullable=False),
        sa.Column("series_instance_uid", sa.String(), nullable=False),
        sa.Column("sop_class_uid", sa.String(), nullable=False),
        sa.Column("transfer_syntax_uid", sa.String(), nullable=False),
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("path", sa.String(), nullable=False),
        sa.Column("size_bytes", sa.Integer(), nullable=False),
        sa.Column("image_type", sa.String(), nullable=False),
        sa.Column("instance_number", sa.Integer(), nullable=True),
        sa.Column("number_of_frames", sa.Integer(), nullable=False),
        sa.Column("slice_position_mm", sa.Double(), nullable=True),
        sa.Column("orientation", sa.String(), nullable=True),
        sa.Column("association_id", sa.String(), nullable=False),
        sa.Column("study_version", sa.Integer(), nullable=False),
        sa.Column("arrived_at", UtcDateTime(), nullable=False),
        sa.Column("purged_at", UtcDateTime(), nullable=True),
        sa.ForeignKeyConstraint(
            ["association_id"],
            ["associations.id"],
        ),
        sa.ForeignKeyConstraint(
            ["study_instance_uid"],
            ["studies.study_instance_uid"],
        ),
        sa.PrimaryKeyConstraint("sop_instance_uid"),
    )
    op.create_index("ix_instances_series", "instances", ["study_instance_uid", "series_instance_uid"], unique=False)


def _series() -> None:
    op.create_table(
        "series",
        sa.Column("study_instance_uid", sa.String(), nullable=False),
        sa.Column("series_instance_uid", sa.String(), nullable=False),
        sa.Column("modality", sa.String(), nullable=False),
        sa.Column("series_description", sa.String(), nullable=False),
        sa.Column("calling_ae_title", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(
            ["study_instance_uid"],
            ["studies.study_instance_uid"],
        ),
        sa.PrimaryKeyConstraint("study_instance_uid", "series_instance_uid"),
    )


def _study_result_calibrations() -> None:
    op.create_table(
        "study_result_calibrations",
        sa.Column("result_id", sa.Integer(), nullable=False),
        sa.Column("calibration_id", sa.String(length=64), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(
            ["result_id"],
            ["study_results.id"],
        ),
        sa.PrimaryKeyConstraint("result_id", "calibration_id"),
    )
    op.create_index(
        op.f("ix_study_result_calibrations_calibration_id"),
        "study_result_calibrations",
        ["calibration_id"],
        unique=False,
    )


def _study_result_objects() -> None:
    op.create_table(
        "study_result_objects",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("result_id", sa.Integer(), nullable=False),
        sa.Column("kind", sa.String(length=32), nullable=False),
        sa.Column("sop_class_uid", sa.String(length=64), nullable=False),
        sa.Column("sop_instance_uid", sa.String(length=64), nullable=False),
        sa.Column("series_instance_uid", sa.String(length=64), nullable=False),
        sa.Column("transfer_syntax_uid", sa.String(length=64), nullable=False),
        sa.Column("path", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(
            ["result_id"],
            ["study_results.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index(op.f("ix_study_result_objects_result_id"), "study_result_objects", ["result_id"], unique=False)
    op.create_index(
        op.f("ix_study_result_objects_sop_instance_uid"), "study_result_objects", ["sop_instance_uid"], unique=False
    )


def _study_senders() -> None:
    op.create_table(
        "study_senders",
        sa.Column("study_instance_uid", sa.String(), nullable=False),
        sa.Column("association_id", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(
            ["association_id"],
            ["associations.id"],
        ),
        sa.ForeignKeyConstraint(
            ["study_instance_uid"],
            ["studies.study_instance_uid"],
        ),
        sa.PrimaryKeyConstraint("study_instance_uid", "association_id"),
    )


def _outbox() -> None:
    op.create_table(
        "outbox",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("object_id", sa.Integer(), nullable=False),
        sa.Column("result_id", sa.Integer(), nullable=False),
        sa.Column("destination", sa.String(length=64), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("preference", sa.Integer(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("queued_at", UtcDateTime(), nullable=False),
        sa.Column("due_at", UtcDateTime(), nullable=False),
        sa.Column("sent_at", UtcDateTime(), nullable=True),
        sa.Column("delivered_at", UtcDateTime(), nullable=True),
        sa.Column("transaction_uid", sa.String(length=64), nullable=True),
        sa.Column("detail", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(
            ["object_id"],
            ["study_result_objects.id"],
        ),
        sa.ForeignKeyConstraint(
            ["result_id"],
            ["study_results.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("object_id", "destination"),
    )
    op.create_index(op.f("ix_outbox_destination"), "outbox", ["destination"], unique=False)
    op.create_index(op.f("ix_outbox_object_id"), "outbox", ["object_id"], unique=False)
    op.create_index(op.f("ix_outbox_result_id"), "outbox", ["result_id"], unique=False)
    op.create_index(op.f("ix_outbox_state"), "outbox", ["state"], unique=False)
    op.create_index(op.f("ix_outbox_transaction_uid"), "outbox", ["transaction_uid"], unique=False)


TABLES = (
    _associations,
    _calibration_epochs,
    _calibrations,
    _cohort_studies,
    _commissioning_declarations,
    _commitments,
    _failed_phantom_scans,
    _jobs,
    _phantoms,
    _quarantine,
    _radiomics_models,
    _studies,
    _study_results,
    _calibration_gates,
    _calibration_reasons,
    _calibration_rods,
    _cohort_vertebrae,
    _instances,
    _series,
    _study_result_calibrations,
    _study_result_objects,
    _study_senders,
    _outbox,
)
