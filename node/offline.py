"""The same chain without a network: folders of DICOM in, reports and DICOM objects out.

A patient scan is calibrated by phantom scans given for the run, which then count as commissioned, and the report says
so; or by what the configured node has stored, chosen as the node itself would.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from pydicom import Dataset

from analysis.calibration_report import calibration_report
from analysis.errors import AnalysisError, NoVertebraError, UnusableSeriesError
from analysis.qc_charts import scan_chart
from analysis.refusals import reason
from analysis.results import Calibration, ChosenCalibration, ModelUsed, Reason, Segmentation, SeriesHeader
from analysis.segmentation_backend import segment_with
from analysis.segmentation_report import segmentation_report
from analysis.volume import CtVolume
from node.analysis_setup import encoding_settings, make_toolkit, site_timezone
from node.config import Config
from node.encode_results import encode_phantom_answer, encode_refusal
from node.encoded import EncodedObject
from node.nifti import body_path, is_nifti, labels_path, read_nifti, write_nifti
from node.patient_flow import PatientStudy, encode_patient, measure_patient, stored_study
from node.phantom_flow import measure_phantom_series
from node.report import patient_report, reasons, unread_report, write_json
from node.series_kind import CT_CLASSES, choose_series, phantom_serial
from node.site_choice import choose_from
from node.stored_calibrations import Judge, JudgedScan, open_stored, series_report
from storage.ct_series import CtSeries, load_ct_series
from storage.dicom_folder import SeriesFiles, find_series


@dataclass(frozen=True, slots=True)
class Answer:
    """What a command ends with: "reported" or "refused", and why."""

    status: str
    reasons: tuple[Reason, ...]


AsStudy = Callable[[CtSeries], PatientStudy]


def with_phantom_scans(folders: tuple[Path, ...], config: Config) -> AsStudy:
    """Calibrate by these scans; they are measured once the patient's series could be read."""
    return lambda series: PatientStudy(series, _choice(folders, config))


def with_stored_calibrations(config: Config) -> AsStudy:
    """Calibrate as the configured node would.

    Raises
    ------
    ConfigError : it has no database
    """
    sessions = open_stored(config)
    return lambda series: stored_study(series, sessions, config)


def analyse_folder(folder: Path, as_study: AsStudy, out: Path, config: Config) -> Answer:
    """Measure one study; write report.json, picture.png and the DICOM objects below `out`."""
    out.mkdir(parents=True, exist_ok=True)
    files: tuple[SeriesFiles, ...] = ()
    try:
        files = find_series(folder)
        series = load_ct_series(_suitable_series(files, config).paths, site_timezone(config))
        for why in _why_not_citable(series):
            raise UnusableSeriesError(why.code, why.text)
    except AnalysisError as refusal:
        header = files[0].header if files else Dataset()
        return _refuse_unread(header, Reason(refusal.code, refusal.text), out, config)
    result = measure_patient(as_study(series), make_toolkit(config))
    objects, picture = encode_patient(result, series, encoding_settings(config))
    write_json(patient_report(result), out / "report.json")
    if picture:
        (out / "picture.png").write_bytes(picture)
    write_objects(objects, out / "dicom")
    return Answer(result.status, result.reasons)


def _choice(phantom_folders: tuple[Path, ...], config: Config) -> Callable[[SeriesHeader], ChosenCalibration]:
    """Measure the phantom scans given; the answer chooses among them, or says why none could be measured."""
    answers = [_measure_phantom_folder(phantom, config)[0] for phantom in phantom_folders]
    found = tuple(answer for answer in answers if isinstance(answer, Calibration))
    why_none = tuple(why for answer in answers if not isinstance(answer, Calibration) for why in answer)
    return choose_from(found, why_none, config)


def _why_not_citable(series: CtSeries) -> tuple[Reason, ...]:
    """SEG and SR refer to each image by its class and UID; () where they can."""
    found = series.datasets[0].get("SOPClassUID")
    said = f"SOP class {found} found; CT or enhanced CT Image Storage expected; send the scanner's own images"
    return series.flags if found in CT_CLASSES else (reason("NO_SUITABLE_SERIES", said), *series.flags)


def _refuse_unread(header: Dataset, refusal: Reason, out: Path, config: Config) -> Answer:
    """A study whose images could not even be read still gets its report and, where it can be cited, its refusal SR."""
    uids = [str(header.get(keyword) or "") for keyword in ("SeriesInstanceUID", "StudyInstanceUID", "SOPInstanceUID")]
    write_json(unread_report(refusal, uids[0], uids[1]), out / "report.json")
    if all(uids) and header.get("SOPClassUID") in CT_CLASSES:
        write_objects(encode_refusal((refusal,), (header,), encoding_settings(config)), out / "dicom")
    return Answer("refused", (refusal,))


def calibrate_folder(
    folder: Path, out: Path, config: Config, judge: Judge | None = None
) -> tuple[bool, tuple[Reason, ...]]:
    """Measure one phantom scan; write calibration.json, a chart and, where the images have UIDs, the DICOM answer.

    Without `judge` the scan is judged by itself alone. Returns (accepted, why not and why no DICOM).
    """
    out.mkdir(parents=True, exist_ok=True)
    answer, series = _measure_phantom_folder(folder, config)
    if isinstance(answer, Calibration):
        judged = judge(answer) if judge else JudgedScan(answer)
        answer = judged.calibration
        report: dict[str, Any] = dict(calibration_report(answer))
        report |= {"stored_series": series_report(judged.found_state)} if judge else {}
        chart: bytes | None = scan_chart(answer, judged.history, config.quality_control)
        (out / "chart.png").write_bytes(chart or b"")
        accepted, found = answer.accepted, answer.reasons
    else:
        report, chart = {"accepted": False, "rods": [], "gates": [], "reasons": reasons(answer)}, None
        accepted, found = False, answer
    write_json(report, out / "calibration.json")
    no_dicom = _why_not_citable(series) if series else ()
    if series and not no_dicom:
        write_objects(encode_phantom_answer(answer, series.datasets, chart, encoding_settings(config)), out / "dicom")
    return accepted, (*found, *no_dicom)


def segment_source(source: Path, out: Path, config: Config) -> Segmentation:
    """Write label map, body map and segment.json; all empty, with the reason, where no spine is found.

    Parameters
    ----------
    source : folder of DICOM images, one DICOM file, or one NIfTI file in HU
    out : the label map, or a folder for labels.nii.gz

    Raises
    ------
    NoVertebraError : after the files are written
    """
    out = labels_path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    read = _read_for_outlines(source, config)
    toolkit = make_toolkit(config)
    try:
        limits = toolkit.settings.segmentation
        segmentation = segment_with(toolkit.backend, read.volume, toolkit.networks, limits)
    except NoVertebraError as refusal:
        nothing = np.zeros(read.volume.hu.shape, np.uint8)
        _write_segmentation(Segmentation(nothing, nothing, (), (), (Reason(refusal.code, refusal.text),)), read, out)
        raise
    return _write_segmentation(segmentation, read, out, toolkit.models)


@dataclass(frozen=True, slots=True, eq=False)
class _Outlined:
    """A volume to outline, the UID of its series (None: a NIfTI file), and what would forbid a measurement in it."""

    volume: CtVolume
    series_instance_uid: str | None = None
    flags: tuple[Reason, ...] = ()


def _read_for_outlines(source: Path, config: Config) -> _Outlined:
    if is_nifti(source):
        return _Outlined(read_nifti(source))
    series = load_ct_series(_outlined_series(source, config).paths, site_timezone(config), outlines_only=True)
    return _Outlined(series.volume, series.header.series_instance_uid, series.flags)


def _outlined_series(source: Path, config: Config) -> SeriesFiles:
    """The series that would be measured; where none is suitable, the longest CT, and else the longest of all."""
    found = find_series(source)
    try:
        return _suitable_series(found, config)
    except UnusableSeriesError:
        return next((one for one in found if one.header.get("Modality", "CT") == "CT"), found[0])


def _write_segmentation(
    segmentation: Segmentation, read: _Outlined, out: Path, models: tuple[ModelUsed, ...] = ()
) -> Segmentation:
    flagged = replace(segmentation, flags=(*segmentation.flags, *read.flags))
    write_nifti(out, flagged.labels, read.volume.affine)
    write_nifti(body_path(out), flagged.body, read.volume.affine)
    series = {"series_instance_uid": read.series_instance_uid}
    write_json(series | segmentation_report(flagged, models), out.parent / "segment.json")
    return flagged


def write_objects(objects: tuple[EncodedObject, ...], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for item in objects:
        name = f"{item.dataset.SeriesNumber}-{item.kind.replace(' ', '-')}.dcm"
        item.dataset.save_as(folder / name, enforce_file_format=True)


def _measure_phantom_folder(folder: Path, config: Config) -> tuple[Calibration | tuple[Reason, ...], CtSeries | None]:
    """The calibration, or why there is none; and the series when it could be read."""
    try:
        files = _longest_series(folder)
    except AnalysisError as refusal:
        return (Reason(refusal.code, refusal.text),), None
    return measure_phantom_series(files.paths, phantom_serial(files.header, config.series), config)


def _longest_series(folder: Path) -> SeriesFiles:
    return find_series(folder)[0]


def _suitable_series(found: tuple[SeriesFiles, ...], config: Config) -> SeriesFiles:
    """The series to analyse; a folder with one series is taken as it is, the checks judge it."""
    if len(found) == 1:
        return found[0]
    choice = choose_series([(series.header, series.n_slices) for series in found], config.series, config.protocol)
    if choice.series_instance_uid is None:
        said = "; ".join(why for _, why in choice.rejected)
        raise UnusableSeriesError("NO_SUITABLE_SERIES", f"{choice.reason}: {said}")
    return next(s for s in found if str(s.header.get("SeriesInstanceUID", "")) == choice.series_instance_uid)
