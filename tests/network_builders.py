"""Builders for tests over real sockets: a running receiver, CT files, and DCMTK's tools as peers."""

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from pydicom import Dataset, dcmwrite
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from node.receiver import Extras, Receiver
from node.receiver_settings import ANY_PEER, ListenAddress, ReceiverSettings
from storage.database import SessionFactory, close_database, sqlite_url
from storage.inbox import DiskLimits, Inbox
from storage.schema import open_database

AE_TITLE = "QCT-NODE"
NO_DISK_LIMITS = DiskLimits(refuse_below_free_bytes=0, refuse_above_used_fraction=1.0, stop_below_free_bytes=0)
SETTINGS = ReceiverSettings(peers=(ANY_PEER,), association_timeout_s=2.0, network_timeout_s=10.0)
QUIET_TOOLS = {**os.environ, "TCP_NODELAY": "1"}


@dataclass(frozen=True)
class RunningNode:
    """A receiver on a free port with its inbox and database."""

    receiver: Receiver
    inbox: Inbox
    sessions: SessionFactory

    @property
    def port(self) -> int:
        return self.receiver.port


@contextmanager
def running_node(
    folder: Path,
    settings: ReceiverSettings = SETTINGS,
    limits: DiskLimits = NO_DISK_LIMITS,
    extras: Extras | None = None,
    database_url: str = "",
) -> Iterator[RunningNode]:
    """A receiver on loopback that stores below `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    sessions = open_database(database_url or sqlite_url(folder / "node.sqlite"))
    inbox = Inbox(folder / "inbox", limits)
    receiver = Receiver(ListenAddress(AE_TITLE, "127.0.0.1", 0), settings, sessions, inbox, extras)
    receiver.start()
    try:
        yield RunningNode(receiver, inbox, sessions)
    finally:
        receiver.stop(drain_s=0.0)
        close_database(sessions)


@dataclass(frozen=True)
class CtSeriesSpec:
    """A CT series without anatomy: what receiving looks at, and nothing else."""

    study_uid: str
    series_uid: str
    slices: int = 3
    rows: int = 16
    spacing_mm: float = 2.5
    first_z_mm: float = 0.0
    patient_id: str = "P1"
    seed: int = 0


def series_spec(**changes: object) -> CtSeriesSpec:
    return replace(CtSeriesSpec(generate_uid(), generate_uid()), **changes)  # type: ignore[arg-type]


def ct_slice(spec: CtSeriesSpec, index: int) -> Dataset:
    """One axial slice, noise as pixels."""
    ds = Dataset()
    ds.SpecificCharacterSet = "ISO_IR 100"
    ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    ds.SOPClassUID = CTImageStorage
    ds.SOPInstanceUID = f"{spec.series_uid[:55]}.{spec.seed}.{index + 1}"
    ds.StudyDate, ds.StudyTime = "20260101", "120000"
    ds.Modality = "CT"
    ds.StudyDescription, ds.SeriesDescription = "ABDOMEN", "AXIAL 2.5"
    ds.PatientName, ds.PatientID = "Doe^Jane", spec.patient_id
    ds.StudyInstanceUID, ds.SeriesInstanceUID = spec.study_uid, spec.series_uid
    ds.InstanceNumber = index + 1
    ds.ImagePositionPatient = [0.0, 0.0, spec.first_z_mm + index * spec.spacing_mm]
    ds.ImageOrientationPatient = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0]
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.Rows = ds.Columns = spec.rows
    ds.PixelSpacing = [0.8, 0.8]
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 1
    ds.RescaleIntercept, ds.RescaleSlope = -1024, 1
    pixels = np.random.default_rng((spec.seed, index)).integers(0, 2000, (spec.rows, spec.rows), dtype=np.int16)
    ds.PixelData = pixels.tobytes()
    ds["PixelData"].VR = "OW"
    return ds


def write_file(ds: Dataset, path: Path, transfer_syntax_uid: str = ExplicitVRLittleEndian) -> Path:
    """A DICOM file; the data set is encoded as the transfer syntax says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = transfer_syntax_uid
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    dcmwrite(path, ds, enforce_file_format=True)
    return path


def write_series(spec: CtSeriesSpec, folder: Path) -> list[Path]:
    """One file per slice."""
    return [write_file(ct_slice(spec, i), folder / f"{i:04d}.dcm") for i in range(spec.slices)]


@dataclass(frozen=True)
class ToolResult:
    code: int
    text: str


def run_tool(*command: str, timeout_s: float = 60.0) -> ToolResult:
    """Run one of DCMTK's tools with TCP_NODELAY=1."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, env=QUIET_TOOLS, check=False)
    return ToolResult(done.returncode, done.stdout + done.stderr)


def storescu(port: int, *arguments: str, called: str = AE_TITLE, calling: str = "CT1") -> ToolResult:
    """Send with DCMTK's storescu: files or folders and its own options."""
    return run_tool("storescu", "-aec", called, "-aet", calling, "127.0.0.1", str(port), *arguments)


def echoscu(port: int, called: str = AE_TITLE, calling: str = "CT1", *options: str) -> ToolResult:
    """Verify with DCMTK's echoscu."""
    return run_tool(
        "echoscu", "-to", "5", "-ta", "5", *options, "-aec", called, "-aet", calling, "127.0.0.1", str(port)
    )


def wait_until(condition: Callable[[], bool], within_s: float = 5.0) -> bool:
    """Whether the condition came true in time."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.01)
    return condition()
