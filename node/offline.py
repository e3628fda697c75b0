"""The same chain without a network: folders of DICOM in, reports and DICOM objects out.

The phantom scans given count as commissioned for this run, and the report says so.
"""

from pathlib import Path

from analysis.calibration_report import calibration_report
from analysis.chain import Toolkit, analyse_phantom
from analysis.errors import AnalysisError, UnusableSeriesError
from analysis.qc_charts import scan_chart
from analysis.results import Calibration, PatientResult, Reason
from analysis.segmentation import segment_vertebrae
from analysis.segmentation_report import segmentation_report
from node.analysis_setup import analysis_settings, find_phantom, make_toolkit, site_timezone
from node.config import Config
from node.encode_results import encode_phantom_answer
from node.encoded import EncodedObject
from node.nifti import body_path, write_nifti
from node.patient_flow import PatientStudy, encode_patient, measure_patient
from node.report import patient_report, reasons, write_json
from node.series_kind import choose_series, phantom_serial
from node.site_choice import choose_from
from storage.ct_series import CtSeries, load_ct_series
from storage.dicom_folder import SeriesFiles, find_series


def analyse_folder(folder: Path, phantom_folders: tuple[Path, ...], out: Path, config: Config) -> PatientResult:
    """Measure one study; write report.json, picture.png and the DICOM objects below `out`."""
    out.mkdir(parents=True, exist_ok=True)
    answers = [_measure_phantom_folder(phantom, config)[0] for phantom in phantom_folders]
    calibrations = tuple(answer for answer in answers if isinstance(answer, Calibration))
    why_none = tuple(why for answer in answers if not isinstance(answer, Calibration) for why in answer)
    series = load_ct_series(_suitable_series(folder, config).paths, site_timezone(config))
    toolkit: Toolkit = make_toolkit(config)
    study = PatientStudy(series, choose_from(calibrations, why_none, config))
    result = measure_patient(study, toolkit)
    objects, picture = encode_patient(result, series, config.results)
    write_json(patient_report(result), out / "report.json")
    if picture:
        (out / "picture.png").write_bytes(picture)
    write_objects(objects, out / "dicom")
    return result


def calibrate_folder(folder: Path, out: Path, config: Config) -> tuple[bool, tuple[Reason, ...]]:
    """Measure one phantom scan; write calibration.json, a chart and the DICOM answer. (accepted, reasons)"""
    out.mkdir(parents=True, exist_ok=True)
    answer, series = _measure_phantom_folder(folder, config)
    if isinstance(answer, Calibration):
        report, chart = calibration_report(answer), scan_chart(answer)
        (out / "chart.png").write_bytes(chart)
        accepted, found = answer.accepted, answer.reasons
    else:
        report, chart = {"accepted": False, "rods": [], "gates": [], "reasons": reasons(answer)}, None
        accepted, found = False, answer
    write_json(report, out / "calibration.json")
    if series:
        write_objects(encode_phantom_answer(answer, series.datasets, chart, config.results), out / "dicom")
    return accepted, found


def segment_folder(folder: Path, out: Path, config: Config) -> None:
    """Write the label map, the body map beside it and segment.json."""
    out.parent.mkdir(parents=True, exist_ok=True)
    series = load_ct_series(_longest_series(folder).paths, site_timezone(config))
    toolkit = make_toolkit(config)
    segmentation = segment_vertebrae(series.volume, toolkit.networks, analysis_settings(config).segmentation)
    write_nifti(out, segmentation.labels, series.volume.affine)
    write_nifti(body_path(out), segmentation.body, series.volume.affine)
    write_json(segmentation_report(segmentation, toolkit.models), out.parent / "segment.json")


def write_objects(objects: tuple[EncodedObject, ...], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for item in objects:
        name = f"{item.dataset.SeriesNumber}-{item.kind.replace(' ', '-')}.dcm"
        item.dataset.save_as(folder / name, enforce_file_format=True)


def _measure_phantom_folder(folder: Path, config: Config) -> tuple[Calibration | tuple[Reason, ...], CtSeries | None]:
    """The calibration, or why there is none; and the series when it could be read."""
    series = None
    try:
        files = _longest_series(folder)
        series = load_ct_series(files.paths, site_timezone(config))
        spec = find_phantom(config, phantom_serial(files.header, config.series), series.header.acquired)
        return analyse_phantom(series.volume, series.header, spec, config.calibration), series
    except AnalysisError as refusal:
        return (Reason(refusal.code, refusal.text),), series


def _longest_series(folder: Path) -> SeriesFiles:
    return find_series(folder)[0]


def _suitable_series(folder: Path, config: Config) -> SeriesFiles:
    """The series of the folder to analyse; a folder with one series is taken as it is, the checks judge it."""
    found = find_series(folder)
    if len(found) == 1:
        return found[0]
    choice = choose_series([(series.header, series.n_slices) for series in found], config.series)
    if choice.series_instance_uid is None:
        said = "; ".join(why for _, why in choice.rejected)
        raise UnusableSeriesError("NO_SUITABLE_SERIES", f"{choice.reason}: {said}")
    return next(s for s in found if s.header.SeriesInstanceUID == choice.series_instance_uid)
