"""Tables of the node's own cohort: each reported study with its density and texture, and the models made of them."""

from datetime import datetime

from sqlalchemy import ForeignKey, String
from sqlalchemy.orm import Mapped, mapped_column, relationship

from storage.database import Base


class CohortStudyRow(Base):
    """One reported study. `patient_key` groups the studies of a patient without naming the patient."""

    __tablename__ = "cohort_studies"

    study_instance_uid: Mapped[str] = mapped_column(String(64), primary_key=True)
    series_instance_uid: Mapped[str] = mapped_column(String(64))
    patient_key: Mapped[str] = mapped_column(String(64), index=True)
    acquired: Mapped[datetime | None]
    saved_at: Mapped[datetime] = mapped_column(index=True)
    manufacturer: Mapped[str | None]
    manufacturer_model_name: Mapped[str | None]
    device_serial_number: Mapped[str | None]
    kvp: Mapped[float | None]
    convolution_kernel: Mapped[str | None]
    slice_thickness_mm: Mapped[float | None]
    spacing_between_slices_mm: Mapped[float]
    pixel_spacing_mm: Mapped[float]
    bmd_mg_cm3: Mapped[float]
    u_bmd_mg_cm3: Mapped[float]
    material: Mapped[str] = mapped_column(String(16))
    classification: Mapped[str | None] = mapped_column(String(16), index=True)  # by density; None: no limits apply
    contract_sha256: Mapped[str] = mapped_column(String(64))
    voi_rule_version: Mapped[str]
    software_version: Mapped[str]
    vertebrae: Mapped[list["CohortVertebraRow"]] = relationship(
        order_by="CohortVertebraRow.position", cascade="all, delete-orphan"
    )


class CohortVertebraRow(Base):
    """The texture features of one vertebra."""

    __tablename__ = "cohort_vertebrae"

    study_instance_uid: Mapped[str] = mapped_column(ForeignKey("cohort_studies.study_instance_uid"), primary_key=True)
    level: Mapped[str] = mapped_column(String(8), primary_key=True)
    position: Mapped[int]
    n_voxels: Mapped[int]
    features_json: Mapped[str]  # name -> value


class RadiomicsModelRow(Base):
    """Audit trail: every model that was put into service or was refused, and what it replaced. Rows never change."""

    __tablename__ = "radiomics_models"

    id: Mapped[int] = mapped_column(primary_key=True)
    decided_at: Mapped[datetime] = mapped_column(index=True)
    sha256: Mapped[str] = mapped_column(String(64))
    name: Mapped[str]
    activated: Mapped[bool]
    reason: Mapped[str]  # the numbers that decided
    macro_auc: Mapped[float]
    kept_as: Mapped[str]  # file that holds this model for good
    replaced_sha256: Mapped[str | None] = mapped_column(String(64))
