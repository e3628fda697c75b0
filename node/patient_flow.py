"""One patient series through the chain and into DICOM objects: the part that the service and the command line share."""

from collections.abc import Callable
from dataclasses import dataclass

from analysis.bmd import EarlierResult
from analysis.chain import PatientScan, Toolkit, analyse_patient
from analysis.pictures import report_picture
from analysis.results import ChosenCalibration, PatientResult, SeriesHeader
from node.config import Config
from node.encode_results import encode_patient_result
from node.encoded import Attachments, EncodedObject, EncodingSettings, Predecessor
from node.site_choice import choose_stored, earlier_result
from storage.ct_series import CtSeries
from storage.database import SessionFactory


@dataclass(frozen=True, slots=True, eq=False)
class PatientStudy:
    """The series to measure, how its calibration is chosen, and what came before."""

    series: CtSeries
    choose: Callable[[SeriesHeader], ChosenCalibration]
    earlier: EarlierResult | None = None


def stored_study(series: CtSeries, sessions: SessionFactory, config: Config) -> PatientStudy:
    """With the calibrations and the earlier result that the site has stored."""
    with sessions.begin() as session:
        earlier = earlier_result(session, series.header.study_instance_uid, series.header)
    return PatientStudy(series, choose_stored(sessions, config), earlier)


def measure_patient(study: PatientStudy, toolkit: Toolkit) -> PatientResult:
    scan = PatientScan(study.series.volume, study.series.header, study.choose, study.earlier)
    return analyse_patient(scan, toolkit)


def encode_patient(
    result: PatientResult,
    series: CtSeries,
    settings: EncodingSettings,
    predecessors: tuple[Predecessor, ...] = (),
    calibration_png: bytes | None = None,
) -> tuple[tuple[EncodedObject, ...], bytes | None]:
    """The DICOM objects and the report picture (None when nothing was measured)."""
    picture = None
    if result.segmentation and result.summary:
        picture = report_picture(series.volume, result.segmentation, result.vois, result.vertebrae, result.summary)
    attachments = Attachments(report_png=picture, calibration_png=calibration_png)
    return encode_patient_result(result, series.datasets, settings, predecessors, attachments), picture
