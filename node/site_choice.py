"""Which calibration a patient scan may use: from this site's store, or from the phantom scans given for one run."""

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from analysis.bmd import EarlierResult
from analysis.calibration_choice import choose_calibration
from analysis.calibration_state import CalibrationSeries
from analysis.errors import NoValidCalibrationError
from analysis.results import Calibration, ChosenCalibration, Material, Reason, SeriesHeader, UncertaintyTerm
from node.config import Config
from storage import calibrations
from storage.database import SessionFactory
from storage.received_tables import StudyRow
from storage.study_results import current_result

SCANNER_NAME = ("Manufacturer", "ManufacturerModelName", "DeviceSerialNumber")
Choose = Callable[[SeriesHeader], ChosenCalibration]


def choose_from(found: tuple[Calibration, ...], why_none: tuple[Reason, ...], config: Config) -> Choose:
    """Choose among scans given for one run; whoever gives them vouches for the scanner where its name is absent."""
    may_be_absent = (*config.calibration_choice.may_be_absent, *SCANNER_NAME)
    limits = replace(config.calibration_choice, may_be_absent=may_be_absent)
    keys = tuple(dict.fromkeys(calibration.key for calibration in found))
    series = tuple(
        CalibrationSeries(
            key, tuple(sorted((c for c in found if c.key == key), key=lambda c: c.acquired)), for_this_run=True
        )
        for key in keys
    )

    def choose(header: SeriesHeader) -> ChosenCalibration:
        if not series and why_none:
            said = "; ".join(f"{why.code}: {why.text}" for why in why_none)
            raise NoValidCalibrationError("NO_CALIBRATION", f"no phantom scan could be measured ({said})")
        return choose_calibration(header, series, limits)

    return choose


def earlier_result(session: Session, study_instance_uid: str, header: SeriesHeader) -> EarlierResult | None:
    """The latest result before this scan of the same patient on the same scanner; None when there is none."""
    study = session.get(StudyRow, study_instance_uid)
    if study is None or not study.patient_id or header.acquired is None:
        return None
    others = session.scalars(
        select(StudyRow.study_instance_uid).where(
            StudyRow.patient_id == study.patient_id, StudyRow.study_instance_uid != study_instance_uid
        )
    )
    reports = [json.loads(found.report_json) for uid in others if (found := current_result(session, uid))]
    earlier = [r for r in reports if _comparable(r, header)]
    return _as_earlier(max(earlier, key=lambda r: str(r["acquired"]))) if earlier else None


def _comparable(report: dict[str, Any], header: SeriesHeader) -> bool:
    """Reported before this scan, on a scanner of the same serial and tube voltage."""
    if report.get("status") != "reported" or not report.get("acquired") or header.acquired is None:
        return False
    scanner = report.get("scanner") or {}
    same = scanner.get("device_serial_number") == header.device_serial_number and scanner.get("kvp") == header.kvp
    return same and datetime.fromisoformat(report["acquired"]) < header.acquired


def _as_earlier(report: dict[str, Any]) -> EarlierResult:
    return EarlierResult(
        datetime.fromisoformat(report["acquired"]),
        tuple(report["levels"]),
        report["bmd_mg_cm3"],
        Material(report["material"]),
        tuple(UncertaintyTerm(**term) for term in report["uncertainty_terms"]),
        report.get("voi_rule_version") or "unknown",
    )


def choose_stored(sessions: SessionFactory, config: Config) -> Choose:
    def choose(header: SeriesHeader) -> ChosenCalibration:
        with sessions.begin() as session:
            return calibrations.choose(session, header, config.calibration_choice)

    return choose
