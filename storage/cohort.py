"""The cohort that grows by itself: every reported study leaves its density and its texture features.

A study that is analysed again replaces its own row; one that is refused later leaves the cohort. Patients are kept
under the SHA-256 of their ID: enough to keep their studies on one side of a split, and no name.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from sqlalchemy import func, select
from sqlalchemy.orm import Session, selectinload

from analysis.results import PatientResult, VertebraFeatures
from storage.cohort_tables import CohortStudyRow, CohortVertebraRow, RadiomicsModelRow
from storage.received_tables import StudyRow


@dataclass(frozen=True, slots=True)
class CohortVertebra:
    level: str
    n_voxels: int
    features: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class CohortStudy:
    """One study of the cohort; `classification` is by density, the reference standard."""

    study_instance_uid: str
    patient_key: str
    acquired: datetime | None
    saved_at: datetime
    manufacturer: str | None
    manufacturer_model_name: str | None
    device_serial_number: str | None
    kvp: float | None
    convolution_kernel: str | None
    slice_thickness_mm: float | None
    spacing_between_slices_mm: float
    pixel_spacing_mm: float
    bmd_mg_cm3: float
    u_bmd_mg_cm3: float
    material: str
    classification: str | None
    contract_sha256: str
    voi_rule_version: str
    software_version: str
    vertebrae: tuple[CohortVertebra, ...]


@dataclass(frozen=True, slots=True)
class CohortCount:
    """How many patients of one class one scanner gave in one month (YYYY-MM, of the acquisition)."""

    scanner: str
    month: str
    classification: str
    patients: int


@dataclass(frozen=True, slots=True)
class ModelDecision:
    """One entry of the models' audit trail."""

    decided_at: datetime
    sha256: str
    name: str
    activated: bool
    reason: str
    macro_auc: float
    kept_as: Path
    replaced_sha256: str | None


_STUDY_COLUMNS = (
    "study_instance_uid", "patient_key", "acquired", "saved_at", "manufacturer", "manufacturer_model_name",
    "device_serial_number", "kvp", "convolution_kernel", "slice_thickness_mm", "spacing_between_slices_mm",
    "pixel_spacing_mm", "bmd_mg_cm3", "u_bmd_mg_cm3", "material", "classification", "contract_sha256",
    "voi_rule_version", "software_version",
)  # fmt: skip
_DECISION_COLUMNS = ("decided_at", "sha256", "name", "activated", "reason", "macro_auc", "replaced_sha256")


def save_features(session: Session, result: PatientResult, now: datetime) -> bool:
    """Keep the features of a reported study in place of what was kept of it before; False: nothing to keep."""
    earlier = session.get(CohortStudyRow, result.header.study_instance_uid)
    if earlier is not None:
        session.delete(earlier)
        session.flush()
    if result.status != "reported" or result.summary is None or not _described(result):
        return False
    session.add(_study_row(session, result, now))
    return True


def load_cohort(session: Session) -> tuple[CohortStudy, ...]:
    """Every study, oldest acquisition first."""
    query = select(CohortStudyRow).options(selectinload(CohortStudyRow.vertebrae))
    rows = session.scalars(query.order_by(CohortStudyRow.acquired, CohortStudyRow.study_instance_uid))
    return tuple(_study(row) for row in rows)


def count_cohort(session: Session) -> tuple[CohortCount, ...]:
    """Patients per scanner, month and class; a patient with several studies counts once in each group."""
    patients: dict[tuple[str, str, str], set[str]] = {}
    columns = (
        CohortStudyRow.manufacturer, CohortStudyRow.manufacturer_model_name, CohortStudyRow.device_serial_number,
        CohortStudyRow.acquired, CohortStudyRow.classification, CohortStudyRow.patient_key,
    )  # fmt: skip
    for maker, model, serial, acquired, classification, key in session.execute(select(*columns)):
        scanner = " ".join(part for part in (maker, model, serial) if part) or "unknown"
        month = acquired.strftime("%Y-%m") if acquired else "unknown"
        patients.setdefault((scanner, month, classification or "no limits"), set()).add(key)
    return tuple(CohortCount(*group, len(keys)) for group, keys in sorted(patients.items()))


def count_patients(session: Session) -> dict[str, int]:
    """Patients per class over all scanners and months."""
    query = select(CohortStudyRow.classification, func.count(CohortStudyRow.patient_key.distinct()))
    rows = session.execute(query.group_by(CohortStudyRow.classification))
    return {classification or "no limits": n for classification, n in rows}


def record_decision(session: Session, decision: ModelDecision) -> None:
    """Write one entry of the audit trail."""
    values = {name: getattr(decision, name) for name in _DECISION_COLUMNS}
    session.add(RadiomicsModelRow(**values, kept_as=str(decision.kept_as)))


def model_decisions(session: Session) -> tuple[ModelDecision, ...]:
    """The audit trail, oldest first."""
    rows = session.scalars(select(RadiomicsModelRow).order_by(RadiomicsModelRow.id))
    return tuple(
        ModelDecision(**{name: getattr(row, name) for name in _DECISION_COLUMNS}, kept_as=Path(row.kept_as))
        for row in rows
    )


def _described(result: PatientResult) -> tuple[VertebraFeatures, ...]:
    return tuple(features for features in result.features if features.values)


def _study_row(session: Session, result: PatientResult, now: datetime) -> CohortStudyRow:
    header, summary = result.header, result.summary
    assert summary is not None
    return CohortStudyRow(
        study_instance_uid=header.study_instance_uid,
        series_instance_uid=header.series_instance_uid,
        patient_key=_patient_key(session, header.study_instance_uid),
        acquired=header.acquired,
        saved_at=now,
        manufacturer=header.manufacturer,
        manufacturer_model_name=header.manufacturer_model_name,
        device_serial_number=header.device_serial_number,
        kvp=header.kvp,
        convolution_kernel=header.convolution_kernel,
        slice_thickness_mm=header.slice_thickness_mm,
        spacing_between_slices_mm=header.spacing_between_slices_mm,
        pixel_spacing_mm=max(header.pixel_spacing_mm),
        bmd_mg_cm3=summary.bmd_mg_cm3,
        u_bmd_mg_cm3=summary.u_bmd_mg_cm3,
        material=str(summary.material),
        classification=str(summary.classification) if summary.classification else None,
        contract_sha256=_described(result)[0].contract_sha256,
        voi_rule_version=result.vois[0].rule_version if result.vois else "",
        software_version=result.software_version,
        vertebrae=[_vertebra_row(features, i) for i, features in enumerate(_described(result))],
    )


def _vertebra_row(features: VertebraFeatures, position: int) -> CohortVertebraRow:
    values = dict(zip(features.names, features.values, strict=True))
    return CohortVertebraRow(
        level=features.level, position=position, n_voxels=features.n_voxels, features_json=json.dumps(values)
    )


def _patient_key(session: Session, study_instance_uid: str) -> str:
    """The hash of the patient's ID; of the study's UID where the study states no patient."""
    study = session.get(StudyRow, study_instance_uid)
    said = study.patient_id if study and study.patient_id else study_instance_uid
    return hashlib.sha256(said.encode()).hexdigest()


def _study(row: CohortStudyRow) -> CohortStudy:
    vertebrae = tuple(CohortVertebra(v.level, v.n_voxels, json.loads(v.features_json)) for v in row.vertebrae)
    return CohortStudy(**{name: getattr(row, name) for name in _STUDY_COLUMNS}, vertebrae=vertebrae)
