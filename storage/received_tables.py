"""Tables of what was received: associations, studies, series, instances, and quarantined second copies.

Rows never leave `storage`; `storage.instances` writes them and answers with frozen values.
"""

from datetime import datetime
from enum import StrEnum

from sqlalchemy import ForeignKey, Index, Table
from sqlalchemy.orm import Mapped, mapped_column

from storage.database import Base


class AssociationRow(Base):
    """One association that sent at least one instance."""

    __tablename__ = "associations"
    id: Mapped[str] = mapped_column(primary_key=True)
    calling_ae_title: Mapped[str]
    called_ae_title: Mapped[str]
    peer_address: Mapped[str]
    opened_at: Mapped[datetime]
    closed_at: Mapped[datetime | None]
    ending: Mapped[str | None]  # AssociationEnding; None while open


class StudyRow(Base):
    __tablename__ = "studies"
    study_instance_uid: Mapped[str] = mapped_column(primary_key=True)
    patient_id: Mapped[str]
    accession_number: Mapped[str]
    study_description: Mapped[str]
    version: Mapped[int]  # of the set of instances; the next one opens with the first late instance
    taken_version: Mapped[int]  # the last version that a job was made for; equal to `version`: nothing is open
    version_opened_at: Mapped[datetime]
    first_arrival_at: Mapped[datetime]
    last_arrival_at: Mapped[datetime]
    delivered_version: Mapped[int]
    delivered_at: Mapped[datetime | None]
    released_version: Mapped[int]  # the operator said: analyse it as it is
    conflict: Mapped[str | None]  # what contradicts itself inside the study, in words


class StudySenderRow(Base):
    """Which associations sent instances of which studies."""

    __tablename__ = "study_senders"
    study_instance_uid: Mapped[str] = mapped_column(ForeignKey("studies.study_instance_uid"), primary_key=True)
    association_id: Mapped[str] = mapped_column(ForeignKey("associations.id"), primary_key=True)


class SeriesRow(Base):
    __tablename__ = "series"
    study_instance_uid: Mapped[str] = mapped_column(ForeignKey("studies.study_instance_uid"), primary_key=True)
    series_instance_uid: Mapped[str] = mapped_column(primary_key=True)
    modality: Mapped[str]
    series_description: Mapped[str]
    calling_ae_title: Mapped[str]  # of the first instance


class InstanceRow(Base):
    __tablename__ = "instances"
    sop_instance_uid: Mapped[str] = mapped_column(primary_key=True)
    study_instance_uid: Mapped[str] = mapped_column(ForeignKey("studies.study_instance_uid"))
    series_instance_uid: Mapped[str]
    sop_class_uid: Mapped[str]
    transfer_syntax_uid: Mapped[str]
    digest: Mapped[str]  # SHA-256 of transfer syntax and encoded data set
    path: Mapped[str]  # relative to the inbox root
    size_bytes: Mapped[int]
    image_type: Mapped[str]
    instance_number: Mapped[int | None]
    number_of_frames: Mapped[int]
    slice_position_mm: Mapped[float | None]
    orientation: Mapped[str | None]
    association_id: Mapped[str] = mapped_column(ForeignKey("associations.id"))
    study_version: Mapped[int]  # the version that it opened or joined
    arrived_at: Mapped[datetime]
    purged_at: Mapped[datetime | None]  # the file is gone: retention
    __table_args__ = (Index("ix_instances_series", "study_instance_uid", "series_instance_uid"),)


class QuarantineRow(Base):
    """A second, different copy of an instance; kept for the operator, never analysed."""

    __tablename__ = "quarantine"
    path: Mapped[str] = mapped_column(primary_key=True)  # relative to the inbox root
    sop_instance_uid: Mapped[str]
    digest: Mapped[str]
    calling_ae_title: Mapped[str]
    reason: Mapped[str]
    arrived_at: Mapped[datetime]


class AssociationEnding(StrEnum):
    RELEASED = "released"
    ABORTED = "aborted"
    LOST = "lost"  # the node stopped while it was open


def table_of(row: type[Base]) -> Table:
    """The table behind a row class, for statements that need no objects."""
    table = row.__table__
    assert isinstance(table, Table)
    return table
