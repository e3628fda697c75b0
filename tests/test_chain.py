"""The order of the steps: what is reported when all is well, and which reason comes back when it is not."""

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from analysis import chain
from analysis.chain import AnalysisSettings, PatientScan, Toolkit, analyse_patient
from analysis.errors import NoValidCalibrationError, NoVertebraError
from analysis.results import Classification, PatientResult, Segmentation, SeriesHeader
from analysis.segmentation import Networks
from analysis.simulation.patient import SimulatedPatient
from analysis.simulation.spine_curve import Fracture, FractureKind
from analysis.volume import CtVolume
from tests.patient_builders import TRUE_LINE, header, small_patient, true_segmentation
from tests.voi_builders import LineSpec, chosen_calibration

NETWORKS = cast(
    Networks, SimpleNamespace(coarse=SimpleNamespace(sha256="c" * 64), fine=SimpleNamespace(sha256="f" * 64))
)


@pytest.fixture
def analyse(monkeypatch: pytest.MonkeyPatch) -> Callable[..., PatientResult]:
    """The chain with the true masks in place of the networks."""

    def run(
        patient: SimulatedPatient,
        segmentation: Segmentation | None = None,
        settings: AnalysisSettings | None = None,
        scan_header: SeriesHeader | None = None,
        choose: Callable[[SeriesHeader], Any] | None = None,
    ) -> PatientResult:
        truth = segmentation or true_segmentation(patient)
        monkeypatch.setattr(chain, "segment_with", lambda *args: truth)
        volume = CtVolume(patient.volume.hu.astype(np.float32), patient.volume.affine)
        line = chosen_calibration(LineSpec(*TRUE_LINE))
        scan = PatientScan(volume, scan_header or header(), choose or (lambda _: line))
        return analyse_patient(scan, Toolkit(NETWORKS, settings or AnalysisSettings()))

    return run


def codes(result: PatientResult) -> set[str]:
    return {reason.code for reason in result.reasons}


def test_a_good_scan_reports_the_known_density_of_l1_and_l2(analyse: Callable[..., PatientResult]) -> None:
    patient = small_patient(100.0)
    result = analyse(patient)
    assert result.status == "reported", result.reasons
    assert [v.level for v in result.vertebrae] == ["L1", "L2"]
    for voi, vertebra in zip(result.vois, result.vertebrae, strict=True):
        box = tuple(slice(a, a + n) for a, n in zip(voi.start, voi.weights.shape, strict=True))
        truth = float((patient.density_mg_cm3[box] * voi.weights).sum() / voi.weights.sum())
        assert vertebra.bmd_mg_cm3 == pytest.approx(truth, abs=2.0)
    assert result.summary is not None and result.summary.classification is Classification.OSTEOPENIA
    assert result.summary.u_bmd_mg_cm3 > 1.0
    assert all(len(features.values) == 93 for features in result.features)
    assert {m.sha256 for m in result.models} == {"c" * 64, "f" * 64}


def test_every_wrong_thing_about_the_scan_is_named_in_one_refusal(analyse: Callable[..., PatientResult]) -> None:
    def none(_: SeriesHeader) -> Any:
        raise NoValidCalibrationError("NO_CALIBRATION", "no calibration; scan the phantom")

    wrong = header(lossy=True, contrast_bolus_agent="IV")
    result = analyse(small_patient(), scan_header=wrong, choose=none)
    assert result.status == "refused" and {"LOSSY", "CONTRAST_TAG", "NO_CALIBRATION"} <= codes(result)
    assert result.summary is None and not result.vertebrae


def test_an_uncertain_level_is_refused_and_never_guessed(analyse: Callable[..., PatientResult]) -> None:
    patient = small_patient()
    result = analyse(patient, true_segmentation(patient, confidence=0.6))
    assert result.status == "refused" and "LEVEL_UNCERTAIN" in codes(result)


def test_a_fractured_l1_is_replaced_by_the_fallback_and_the_report_says_so(
    analyse: Callable[..., PatientResult],
) -> None:
    patient = small_patient(100.0, (Fracture("L1", FractureKind.WEDGE, 0.4),))
    result = analyse(patient)
    assert result.status == "reported", result.reasons
    assert result.summary is not None and "L1" not in result.summary.levels
    assert "L1" in {rejected.level for rejected in result.summary.rejected}
    assert "FALLBACK_LEVEL" in {flag.code for flag in result.flags}


def test_no_spine_is_a_result_with_a_reason(
    analyse: Callable[..., PatientResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    patient = small_patient()
    result = analyse(patient)

    def nothing(*_: Any) -> Segmentation:
        raise NoVertebraError("NO_SPINE", "no column of vertebral bodies")

    monkeypatch.setattr(chain, "segment_with", nothing)
    scan = PatientScan(patient.volume, header(), lambda _: chosen_calibration(LineSpec()))
    refused = analyse_patient(scan, Toolkit(NETWORKS, AnalysisSettings()))
    assert refused.status == "refused" and codes(refused) == {"NO_SPINE"}
    assert result.status == "reported"


def test_limits_of_another_material_give_a_density_but_no_class(analyse: Callable[..., PatientResult]) -> None:
    settings = AnalysisSettings()
    settings = replace(settings, bmd=replace(settings.bmd, material="HA"))
    result = analyse(small_patient(), settings=settings)
    assert result.status == "reported" and result.summary is not None and result.summary.classification is None
    assert "CALIBRATION_MATERIAL" in {flag.code for flag in result.flags}
