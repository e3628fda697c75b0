"""A stand-in for the analysis in service tests: one object per study, after as many seconds as the study was told."""

import time
from pathlib import Path

from pydicom import Dataset, dcmread, dcmwrite
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from node.config import Config, load_config
from node.worker_messages import AnalysisTask
from storage.instances import series_of_study
from storage.schema import open_database
from storage.study_results import StoredObject, StudyOutcome
from tests.database_builders import SEG


def prepare(config_path: Path | None) -> Config:
    assert config_path is not None
    return load_config(config_path)


def process_study(task: AnalysisTask, config: Config) -> StudyOutcome:
    """The first slice's StudyDescription "SLOW 5" means: take five seconds."""
    with open_database(config.database_url, upgrade=False).begin() as session:
        (series,) = series_of_study(session, task.study_instance_uid, task.version)
    header = dcmread(config.storage.inbox_folder / series.instances[0].path, stop_before_pixels=True)
    words = str(header.get("StudyDescription", "")).split()
    time.sleep(float(words[1]) if words[:1] == ["SLOW"] else 0.0)
    path = _write(config.storage.results_folder, header, task.version)
    made = StoredObject("segmentation", SEG, path.stem, f"{path.stem}.1", ExplicitVRLittleEndian, path)
    return StudyOutcome(
        task.study_instance_uid, task.version, "PATIENT", "reported", series.series_instance_uid, objects=(made,)
    )


def _write(folder: Path, header: Dataset, version: int) -> Path:
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    uid = f"{header.StudyInstanceUID[:50]}.{version}"
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = SEG
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = uid
    ds.StudyInstanceUID, ds.SeriesInstanceUID = header.StudyInstanceUID, f"{uid}.1"
    folder.mkdir(parents=True, exist_ok=True)
    dcmwrite(folder / f"{uid}.dcm", ds, enforce_file_format=True)
    return folder / f"{uid}.dcm"
