"""The earlier result that a new one is compared with: the same patient, scanner and voltage, the last before it."""

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from analysis.bmd import EarlierResult, compare_with_earlier
from node.report import patient_report
from node.site_choice import earlier_result
from storage.database import SessionFactory
from storage.instances import record_arrival
from tests.database_builders import outcome, report
from tests.result_builders import make_headers, make_refusal, make_result, make_series_header, make_summary
from tests.test_completeness import arrival

HEADERS = make_headers()
TODAY = make_series_header(HEADERS)
assert TODAY.acquired is not None
NOW: datetime = TODAY.acquired
Report = Callable[..., None]


@pytest.fixture
def reported(sessions: SessionFactory) -> Report:
    """Stores the report of an earlier study of a patient, its header and summary changed as wanted."""

    def add(uid: str, days_ago: float, patient_id: str = "P1", refused: bool = False, **changes: object) -> None:
        rule = changes.pop("voi_rule_version", "oval-3")
        header = replace(TODAY, acquired=NOW - timedelta(days=days_ago), **changes)  # type: ignore[arg-type]
        result = make_refusal(HEADERS) if refused else make_result(HEADERS)
        summary = None if refused else make_summary(bmd_mg_cm3=100.0 + days_ago, voi_rule_version=str(rule))
        text = json.dumps(patient_report(replace(result, header=header, summary=summary)))
        receive(sessions, uid, patient_id)
        report(sessions, outcome(uid, status="refused" if refused else "reported", report_json=text))

    return add


def receive(sessions: SessionFactory, uid: str, patient_id: str) -> None:
    names = {"study_instance_uid": uid, "series_instance_uid": f"{uid}.1", "sop_instance_uid": f"{uid}.1.1"}
    with sessions.begin() as session:
        record_arrival(session, arrival(0, 0, patient_id=patient_id, **names))


def found(sessions: SessionFactory, patient_id: str = "P1") -> EarlierResult | None:
    """What is found for a study of today."""
    receive(sessions, "1.9", patient_id)
    with sessions() as session:
        return earlier_result(session, "1.9", TODAY)


def test_the_last_result_before_this_scan_is_found(sessions: SessionFactory, reported: Report) -> None:
    for uid, days in (("1.1", 800), ("1.2", 400), ("1.3", -30)):
        reported(uid, days)
    earlier = found(sessions)
    assert earlier is not None and earlier.acquired == NOW - timedelta(days=400)
    assert earlier.bmd_mg_cm3 == pytest.approx(500.0) and earlier.voi_rule_version == "oval-3"
    assert {term.name for term in earlier.terms} == {"calibration line", "body size"}


@pytest.mark.parametrize(
    "other",
    [
        {"patient_id": "P2"},
        {"device_serial_number": "CT2"},
        {"kvp": 100.0},
        {"refused": True},
    ],
    ids=["another patient", "another scanner", "another tube voltage", "a refusal"],
)
def test_what_cannot_be_compared_is_not_found(
    other: dict[str, object], sessions: SessionFactory, reported: Report
) -> None:
    reported("1.1", 400, **other)
    assert found(sessions) is None


def test_studies_without_a_patient_id_are_nobody_s_earlier_ones(sessions: SessionFactory, reported: Report) -> None:
    reported("1.1", 400, patient_id="")
    assert found(sessions, patient_id="") is None


def test_a_result_of_another_voi_rule_is_no_earlier_value(sessions: SessionFactory, reported: Report) -> None:
    """Another rule is another method: its difference would be stated as the patient's change."""
    reported("1.1", 400, voi_rule_version="oval-2")
    earlier = found(sessions)
    assert earlier is not None
    assert compare_with_earlier(make_summary(voi_rule_version="oval-3"), earlier) is None
    assert compare_with_earlier(make_summary(voi_rule_version="oval-2"), earlier) is not None
