"""One study from its received files to its stored outcome: what the worker processes run.

phantom   load -> analysis.chain.analyse_phantom -> calibrations -> small SR and chart
patient   choose series and calibration -> analysis.chain.analyse_patient -> SEG, SRs, picture, report.json
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydicom import Dataset, dcmread

from analysis.calibration_report import calibration_report
from analysis.chain import Toolkit
from analysis.errors import AnalysisError
from analysis.qc_charts import scan_chart
from analysis.results import Calibration, PatientResult, Reason
from node.analysis_setup import encoding_settings, make_toolkit, site_timezone
from node.config import Config, load_config_or_default
from node.encode_results import encode_phantom_answer, encode_refusal
from node.encoded import EncodedObject, ObjectKind, Predecessor
from node.encoding_forms import other_forms
from node.patient_flow import encode_patient, measure_patient, stored_study
from node.phantom_flow import measure_phantom_series
from node.report import patient_report, unread_report, write_json
from node.result_files import store_objects, write_durably
from node.series_kind import SeriesKind, SeriesVerdict, choose_series, judge_series
from node.worker_messages import AnalysisTask
from storage import calibrations, cohort
from storage.calibrations import SaveLimits
from storage.ct_series import CtSeries, load_ct_series
from storage.database import SessionFactory
from storage.instances import ReceivedSeries, series_of_study
from storage.schema import open_database
from storage.study_results import StoredObject, StudyOutcome, results_of_study


@dataclass(frozen=True, slots=True, eq=False)
class Context:
    """What a worker process keeps between studies."""

    config: Config
    toolkit: Toolkit
    sessions: SessionFactory


@dataclass(frozen=True, slots=True, eq=False)
class JudgedSeries:
    """A received series with the header of one slice and what it is."""

    received: ReceivedSeries
    header: Dataset
    verdict: SeriesVerdict
    paths: tuple[Path, ...]


def prepare(config_path: Path | None) -> Context:
    """Load configuration, networks and database once per process."""
    config = load_config_or_default(config_path)
    sessions = open_database(config.database_url, upgrade=False)
    with sessions.begin() as session:
        for phantom in config.phantoms:
            calibrations.register_phantom(session, phantom)
    return Context(config, make_toolkit(config), sessions)


def process_study(task: AnalysisTask, context: Context) -> StudyOutcome:
    """Analyse one version of a study; the outcome's objects lie on disk when it returns."""
    series = _judged_series(task, context)
    phantoms = [one for one in series if one.verdict.kind is SeriesKind.PHANTOM]
    if phantoms:
        return _process_phantom(task, max(phantoms, key=lambda one: len(one.paths)), context)
    if any(one.verdict.kind is SeriesKind.PATIENT for one in series):
        return _process_patient(task, series, context)
    said = tuple(Reason("NO_SUITABLE_SERIES", one.verdict.reason) for one in series)
    return StudyOutcome(task.study_instance_uid, task.version, SeriesKind.OTHER, "ignored", reasons=said)


def _judged_series(task: AnalysisTask, context: Context) -> tuple[JudgedSeries, ...]:
    with context.sessions.begin() as session:
        received = series_of_study(session, task.study_instance_uid, task.version)
    inbox = context.config.storage.inbox_folder
    return tuple(_judge(series, inbox, context.config) for series in received)


def _judge(series: ReceivedSeries, inbox: Path, config: Config) -> JudgedSeries:
    paths = tuple(inbox / instance.path for instance in series.instances)
    header = dcmread(paths[0], stop_before_pixels=True)
    return JudgedSeries(series, header, judge_series(header, series.calling_ae_title, config.series), paths)


def _process_phantom(task: AnalysisTask, series: JudgedSeries, context: Context) -> StudyOutcome:
    config = context.config
    answer, loaded = measure_phantom_series(series.paths, series.verdict.phantom_serial, config)
    headers = loaded.datasets if loaded else (series.header,)
    if not isinstance(answer, Calibration):
        _remember_failure(loaded, series, answer, context)
        objects = encode_phantom_answer(answer, headers, None, encoding_settings(config))
        return _phantom_outcome(task, series, "rejected", _store(objects, task, context), reasons=answer)
    verdict, amended = _save_calibration(answer, context)
    objects = encode_phantom_answer(verdict, headers, _chart(verdict, context), encoding_settings(config))
    return _phantom_outcome(
        task,
        series,
        "accepted" if verdict.accepted else "rejected",
        _store(objects, task, context),
        reasons=verdict.reasons,
        report_json=json.dumps(calibration_report(verdict)),
        calibration_ids=(verdict.id,),
        reanalyse=amended,
    )


def _phantom_outcome(
    task: AnalysisTask, series: JudgedSeries, status: str, objects: tuple[StoredObject, ...], **more: Any
) -> StudyOutcome:
    uid = series.received.series_instance_uid
    return StudyOutcome(task.study_instance_uid, task.version, SeriesKind.PHANTOM, status, uid, objects=objects, **more)


def _save_calibration(answer: Calibration, context: Context) -> tuple[Calibration, tuple[str, ...]]:
    """The scan with the charts' verdict, stored; and the studies whose results it amends."""
    limits = SaveLimits(context.config.quality_control, context.config.calibration_choice)
    with context.sessions.begin() as session:
        verdict = calibrations.judge(session, answer, limits)
        return verdict, calibrations.save_calibration(session, answer, datetime.now(UTC), limits)


def _remember_failure(loaded: CtSeries | None, series: JudgedSeries, why: tuple[Reason, ...], context: Context) -> None:
    if loaded is not None:
        serial = series.verdict.phantom_serial
        with context.sessions.begin() as session:
            calibrations.save_failed_scan(session, loaded.header, serial, why[0], datetime.now(UTC))


def _chart(verdict: Calibration, context: Context) -> bytes:
    with context.sessions.begin() as session:
        scans = calibrations.history(session, verdict.key)
    return scan_chart(verdict, scans, context.config.quality_control)


def _process_patient(task: AnalysisTask, series: Sequence[JudgedSeries], context: Context) -> StudyOutcome:
    config = context.config
    choice = choose_series([(one.header, _n_slices(one)) for one in series], config.series, config.protocol)
    if choice.series_instance_uid is None:
        said = "; ".join(why for _, why in choice.rejected)
        refusal = Reason("NO_SUITABLE_SERIES", f"{choice.reason}: {said}")
        return _refused_unread(task, series[0], refusal, context)
    chosen = next(one for one in series if one.received.series_instance_uid == choice.series_instance_uid)
    try:
        loaded = load_ct_series(chosen.paths, site_timezone(config))
    except AnalysisError as refusal:
        return _refused_unread(task, chosen, Reason(refusal.code, refusal.text), context)
    result = measure_patient(stored_study(loaded, context.sessions, config), context.toolkit)
    return _patient_outcome(task, result, loaded, context)


def _n_slices(series: JudgedSeries) -> int:
    return max(len(series.paths), int(series.header.get("NumberOfFrames") or 1))


def _patient_outcome(task: AnalysisTask, result: PatientResult, loaded: CtSeries, context: Context) -> StudyOutcome:
    predecessors = _predecessors(task, result, context)
    objects, picture = encode_patient(result, loaded, encoding_settings(context.config), predecessors)
    report = patient_report(result)
    folder = _folder(task, context)
    stored = _store(objects, task, context)
    write_json(report, folder / "report.json")
    if picture:
        write_durably(folder / "picture.png", picture)
    if result.features:
        with context.sessions.begin() as session:
            cohort.save_features(session, result, datetime.now(UTC))
    chosen = result.chosen
    return StudyOutcome(
        task.study_instance_uid,
        task.version,
        SeriesKind.PATIENT,
        result.status,
        result.header.series_instance_uid,
        result.reasons,
        json.dumps(report),
        calibration_ids(result),
        provisional=bool(chosen and chosen.provisional and result.status == "reported"),
        objects=stored,
    )


def _refused_unread(task: AnalysisTask, series: JudgedSeries, refusal: Reason, context: Context) -> StudyOutcome:
    """A study whose images could not even be read: the refusal still goes back to PACS."""
    objects = encode_refusal((refusal,), (series.header,), encoding_settings(context.config))
    return StudyOutcome(
        task.study_instance_uid,
        task.version,
        SeriesKind.PATIENT,
        "refused",
        series.received.series_instance_uid,
        (refusal,),
        json.dumps(unread_report(refusal, series.received.series_instance_uid, task.study_instance_uid)),
        objects=_store(objects, task, context),
    )


def _predecessors(task: AnalysisTask, result: PatientResult, context: Context) -> tuple[Predecessor, ...]:
    """The objects that this result supersedes; a repetition of the current result supersedes what that one did."""
    with context.sessions.begin() as session:
        earlier = [r for r in results_of_study(session, task.study_instance_uid) if r.kind == SeriesKind.PATIENT]
    if earlier and (earlier[-1].version, earlier[-1].calibration_ids) == (task.version, calibration_ids(result)):
        earlier.pop()
    if not earlier:
        return ()
    return tuple(
        Predecessor(
            ObjectKind(one.kind),
            one.sop_class_uid,
            one.sop_instance_uid,
            task.study_instance_uid,
            one.series_instance_uid,
        )
        for one in earlier[-1].objects
    )


def calibration_ids(result: PatientResult) -> tuple[str, ...]:
    if result.chosen is None:
        return ()
    ids = (result.chosen.calibration.id, result.chosen.bracketing_id)
    return tuple(one for one in ids if one)


def _store(objects: Sequence[EncodedObject], task: AnalysisTask, context: Context) -> tuple[StoredObject, ...]:
    config = context.config
    forms = other_forms(objects, config.destinations, config.results.uid_root)
    return store_objects((*objects, *forms), _folder(task, context))


def _folder(task: AnalysisTask, context: Context) -> Path:
    return context.config.storage.results_folder / task.study_instance_uid / str(task.version)
