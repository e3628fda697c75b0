"""The registered phantom units, valid-from dated, and phantom scans that could not be measured.

An unknown serial is never guessed.
"""

from datetime import UTC, datetime

from pydantic import TypeAdapter
from sqlalchemy import select
from sqlalchemy.orm import Session

from analysis.errors import PhantomUnusableError
from analysis.results import PhantomSpec, Reason, SeriesHeader
from storage.calibration_tables import FailedPhantomScanRow, PhantomRow

_PHANTOM = TypeAdapter(PhantomSpec)
_FIRST_DAY = datetime(1970, 1, 1, tzinfo=UTC)


def register_phantom(session: Session, spec: PhantomSpec) -> None:
    """Store a unit's certificate from its valid-from date; registering the same again changes nothing.

    Raises
    ------
    ValueError : other values for the same serial and date
    """
    valid_from = spec.valid_from or _FIRST_DAY
    text = _PHANTOM.dump_json(spec).decode()
    row = session.scalar(
        select(PhantomRow).where(PhantomRow.serial == spec.serial, PhantomRow.valid_from == valid_from)
    )
    if row is not None and row.spec_json != text:
        raise ValueError(
            f"phantom {spec.serial} is registered from {valid_from:%Y-%m-%d} with other values; give a later date"
        )
    if row is None:
        session.add(PhantomRow(serial=spec.serial, valid_from=valid_from, spec_json=text))
        session.flush()


def phantom_for(session: Session, serial: str, at: datetime) -> PhantomSpec:
    """The certificate of a unit that was valid at `at`.

    Raises
    ------
    PhantomUnusableError : UNKNOWN_PHANTOM_SERIAL
    """
    row = session.scalars(
        select(PhantomRow)
        .where(PhantomRow.serial == serial, PhantomRow.valid_from <= at)
        .order_by(PhantomRow.valid_from.desc())
    ).first()
    if row is None:
        known = sorted(set(session.scalars(select(PhantomRow.serial))))
        text = f"phantom serial {serial!r} at {at:%Y-%m-%d}; registered: {', '.join(known) or 'none'}; register it"
        raise PhantomUnusableError("UNKNOWN_PHANTOM_SERIAL", text)
    return _PHANTOM.validate_json(row.spec_json)


def save_failed_scan(
    session: Session, header: SeriesHeader, phantom_serial: str | None, why: Reason, now: datetime
) -> None:
    """Remember a phantom scan that could not be measured; it stops nothing, the next scan is still due."""
    session.merge(
        FailedPhantomScanRow(
            series_instance_uid=header.series_instance_uid,
            device_serial_number=header.device_serial_number,
            phantom_serial=phantom_serial,
            acquired_at=header.acquired,
            saved_at=now,
            code=why.code,
            text=why.text,
        )
    )
    session.flush()


def failed_scans(session: Session, since: datetime) -> tuple[tuple[str, Reason], ...]:
    """(series UID, reason) of phantom scans that could not be measured, newest first."""
    rows = session.scalars(
        select(FailedPhantomScanRow)
        .where(FailedPhantomScanRow.saved_at >= since)
        .order_by(FailedPhantomScanRow.saved_at.desc())
    )
    return tuple((row.series_instance_uid, Reason(row.code, row.text)) for row in rows)
