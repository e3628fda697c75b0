"""What the site declares about its calibrations: a key commissioned, a new epoch; who, when and why is kept for good.

An epoch begins where the scanner changed in a way that its header does not show (tube, detector, service). Phantom
scans on either side are never compared or interpolated; reports resume after some scans that agree.
"""

import json
from dataclasses import dataclass
from datetime import datetime, timedelta

from pydantic import TypeAdapter
from sqlalchemy import select
from sqlalchemy.orm import Session

from analysis.calibration import normalised
from analysis.results import CalibrationKey
from storage.calibration_tables import CalibrationRow, CommissioningRow, EpochRow
from storage.calibrations import describe_key, history, key_text
from storage.study_results import StudyResult, hold_results, results_using

_KEY = TypeAdapter(CalibrationKey)


@dataclass(frozen=True, slots=True)
class Declaration:
    """One entry of the audit trail; `starts_at` is that of an epoch, else the moment of the declaration."""

    what: str  # "commissioned" or "new epoch"
    about: str  # the key, or the scanner's serial
    starts_at: datetime
    reason: str
    declared_by: str
    declared_at: datetime


def declare_commissioned(session: Session, key: CalibrationKey, reason: str, by: str, now: datetime) -> None:
    """The site takes a key into service before its baseline is complete; it holds until the next epoch.

    Raises
    ------
    ValueError : no reason, or a key without any scan
    """
    if not reason.strip():
        raise ValueError("declaring a key commissioned needs a reason")
    if not history(session, key):
        raise ValueError(f"no phantom scan is stored for {describe_key(key)}; expected at least one")
    session.add(CommissioningRow(key_json=key_text(key), reason=reason, declared_by=by, declared_at=now))
    session.flush()


@dataclass(frozen=True, slots=True)
class NewEpoch:
    """A scanner changed at `starts_at`: earlier phantom scans no longer count for any of its protocols."""

    device_serial_number: str
    starts_at: datetime
    reason: str
    declared_by: str


def declare_epoch(session: Session, epoch: NewEpoch, now: datetime) -> tuple[str, ...]:
    """Record the epoch. Reports that used a phantom scan across its beginning go on hold; their studies are named.

    Raises
    ------
    ValueError : no reason, or a beginning after `now`
    """
    if not epoch.reason.strip():
        raise ValueError("declaring an epoch needs a reason, for example: tube replaced")
    if epoch.starts_at > now:
        raise ValueError(f"the epoch begins at {epoch.starts_at.isoformat()}, later than now, {now.isoformat()}")
    serial = normalised(epoch.device_serial_number)
    session.add(
        EpochRow(
            device_serial_number=serial,
            starts_at=epoch.starts_at,
            reason=epoch.reason,
            declared_by=epoch.declared_by,
            declared_at=now,
        )
    )
    session.flush()
    return _hold_across(session, serial, epoch)


def declarations(session: Session) -> tuple[Declaration, ...]:
    """The audit trail, oldest first."""
    commissioned = [
        Declaration("commissioned", describe_key(_KEY.validate_json(row.key_json)), row.declared_at, row.reason,
                    row.declared_by, row.declared_at)
        for row in session.scalars(select(CommissioningRow))
    ]  # fmt: skip
    epochs = [
        Declaration("new epoch", f"scanner {row.device_serial_number}", row.starts_at, row.reason, row.declared_by,
                    row.declared_at)
        for row in session.scalars(select(EpochRow))
    ]  # fmt: skip
    return tuple(sorted([*commissioned, *epochs], key=lambda one: one.declared_at))


def _hold_across(session: Session, serial: str, epoch: NewEpoch) -> tuple[str, ...]:
    rows = session.scalars(select(CalibrationRow).where(CalibrationRow.device_serial_number == serial))
    scans = {row.id: row.acquired_at for row in rows}
    crossing = [r for r in results_using(session, scans) if _crosses(r, scans, epoch.starts_at)]
    text = f"the scanner changed at {epoch.starts_at:%Y-%m-%d %H:%M} UTC ({epoch.reason}); its phantom scan lies across"
    hold_results(session, [r.id for r in crossing], text)
    return tuple(r.study_instance_uid for r in crossing)


def _crosses(result: StudyResult, scans: dict[str, datetime], starts_at: datetime) -> bool:
    """Do the patient scan and a phantom scan that it used lie on different sides of the epoch's beginning?"""
    used = [scans[id_] for id_ in result.calibration_ids if id_ in scans]
    age_days = (json.loads(result.report_json).get("calibration") or {}).get("age_days", 0.0)
    patient = used[0] + timedelta(days=age_days)
    return len({moment >= starts_at for moment in (*used, patient)}) > 1
