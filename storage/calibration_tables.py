"""Tables of the calibrations: phantom scans with rods and gates, declarations, epochs, registered phantoms.

Rows never leave `storage`; `storage.calibrations` writes them and answers with frozen values. A calibration row is
never changed but for the name of its successor.
"""

from datetime import datetime

from sqlalchemy import ForeignKey, Index, String, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column, relationship

from storage.database import Base


class CalibrationRow(Base):
    """One phantom scan as measured by one software version, with its verdict."""

    __tablename__ = "calibrations"
    __table_args__ = (Index("ix_calibrations_key", "key_json", "acquired_at"),)

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    series_instance_uid: Mapped[str] = mapped_column(String(64), index=True)
    key_json: Mapped[str]  # CalibrationKey, sorted names: what must match
    device_serial_number: Mapped[str] = mapped_column(index=True)
    phantom_serial: Mapped[str]
    acquired_at: Mapped[datetime] = mapped_column(index=True)
    saved_at: Mapped[datetime]
    accepted: Mapped[bool]
    sigma_ref: Mapped[float]
    beta_ref: Mapped[float]
    sigma_ct_hu_per_mg_cm3: Mapped[float]
    beta_ct_hu: Mapped[float]
    r2: Mapped[float]
    see_hu: Mapped[float]
    software_version: Mapped[str]
    payload_json: Mapped[str]  # the whole Calibration
    superseded_by: Mapped[str | None] = mapped_column(ForeignKey("calibrations.id"), index=True)
    rods: Mapped[list["CalibrationRodRow"]] = relationship(order_by="CalibrationRodRow.position")
    gates: Mapped[list["CalibrationGateRow"]] = relationship(order_by="CalibrationGateRow.position")
    reasons: Mapped[list["CalibrationReasonRow"]] = relationship(order_by="CalibrationReasonRow.position")


class CalibrationRodRow(Base):
    __tablename__ = "calibration_rods"

    calibration_id: Mapped[str] = mapped_column(ForeignKey("calibrations.id"), primary_key=True)
    position: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    hu: Mapped[float]
    sd_hu: Mapped[float]
    n_voxels: Mapped[int]
    standard_error_hu: Mapped[float]


class CalibrationGateRow(Base):
    __tablename__ = "calibration_gates"

    calibration_id: Mapped[str] = mapped_column(ForeignKey("calibrations.id"), primary_key=True)
    position: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    value: Mapped[float]
    low: Mapped[float | None]
    high: Mapped[float | None]
    passed: Mapped[bool]


class CalibrationReasonRow(Base):
    """Why a scan was rejected, or what quality control found."""

    __tablename__ = "calibration_reasons"

    calibration_id: Mapped[str] = mapped_column(ForeignKey("calibrations.id"), primary_key=True)
    position: Mapped[int] = mapped_column(primary_key=True)
    code: Mapped[str]
    text: Mapped[str]


class CommissioningRow(Base):
    """The site declared a key commissioned before its baseline was complete."""

    __tablename__ = "commissioning_declarations"

    id: Mapped[int] = mapped_column(primary_key=True)
    key_json: Mapped[str] = mapped_column(index=True)
    reason: Mapped[str]
    declared_by: Mapped[str]
    declared_at: Mapped[datetime]


class EpochRow(Base):
    """The site declared that a scanner changed: tube, service."""

    __tablename__ = "calibration_epochs"

    id: Mapped[int] = mapped_column(primary_key=True)
    device_serial_number: Mapped[str] = mapped_column(index=True)
    starts_at: Mapped[datetime]
    reason: Mapped[str]
    declared_by: Mapped[str]
    declared_at: Mapped[datetime]


class PhantomRow(Base):
    """A registered phantom unit; a new certificate is a new row with a later date."""

    __tablename__ = "phantoms"
    __table_args__ = (UniqueConstraint("serial", "valid_from"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    serial: Mapped[str] = mapped_column(index=True)
    valid_from: Mapped[datetime]
    spec_json: Mapped[str]


class FailedPhantomScanRow(Base):
    """A phantom scan that could not be measured at all."""

    __tablename__ = "failed_phantom_scans"

    series_instance_uid: Mapped[str] = mapped_column(String(64), primary_key=True)
    device_serial_number: Mapped[str | None]
    phantom_serial: Mapped[str | None]
    acquired_at: Mapped[datetime | None]
    saved_at: Mapped[datetime]
    code: Mapped[str]
    text: Mapped[str]
