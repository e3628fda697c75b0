"""The whole node over real sockets: phantom scans in, a patient in, SEG and SR in Orthanc; DCMTK sends, Orthanc keeps.

Simulated scans carry the headers of the imaginary scanner of `node.simulated_series`; their true density is known.
"""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from pydicom import Dataset, dcmread

from node.config import load_config
from node.simulate import PatientOrder, PhantomOrder, write_patient, write_phantom
from tests.data import SHARED_DATA, needs_data
from tests.orthanc import Orthanc, free_port, needs_orthanc, running_orthanc

pytestmark = [
    pytest.mark.slow,
    needs_orthanc,
    pytest.mark.skipif(shutil.which("storescu") is None, reason="DCMTK is not installed (Debian package dcmtk)"),
    pytest.mark.timeout(600),
]
SEGMENTATION, COMPREHENSIVE_3D_SR, ENHANCED_SR = (
    "1.2.840.10008.5.1.4.1.1.66.4",
    "1.2.840.10008.5.1.4.1.1.88.34",
    "1.2.840.10008.5.1.4.1.1.88.22",
)
NOW = datetime.now(UTC).replace(microsecond=0)

CONFIG = """\
node: {{ae_title: QCT-NODE, bind_address: 127.0.0.1, port: {port}}}
storage: {{folder: {folder}}}
receiving: {{peers: [{{ae_title: STORESCU, addresses: [127.0.0.0/8]}}]}}
completeness: {{quiet_s: 2}}
calibration_choice: {{commissioning: {{scans: 2}}, may_be_absent: [{absent}]}}
protocol: {{max_slice_thickness_mm: {thickness_mm}}}
destinations:
  - {{name: orthanc, ae_title: {pacs.ae_title}, host: 127.0.0.1, port: {pacs.dicom_port}}}
"""


@dataclass(frozen=True)
class RunningNode:
    """The node as a process of its own, as systemd would start it, and the PACS that it answers to."""

    port: int
    config_path: Path
    pacs: Orthanc

    def send(self, folder: Path) -> str:
        """Send a series with DCMTK's storescu; the study's UID."""
        command = ["storescu", "-aec", "QCT-NODE", "127.0.0.1", str(self.port), "+sd", "+r", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, env={"TCP_NODELAY": "1"})
        assert done.returncode == 0, done.stderr
        return str(dcmread(next(folder.glob("*.dcm")), stop_before_pixels=True).StudyInstanceUID)

    def wait_for(self, study_instance_uid: str, sop_class_uid: str, limit_s: float = 240.0) -> Dataset:
        """The first object of this class that Orthanc holds for the study."""
        deadline = time.monotonic() + limit_s
        while time.monotonic() < deadline:
            for ds in self.objects(study_instance_uid):
                if ds.SOPClassUID == sop_class_uid:
                    return ds
            time.sleep(0.5)
        raise AssertionError(f"no object of class {sop_class_uid} in Orthanc within {limit_s} s")

    def of_class(self, study_instance_uid: str, sop_class_uid: str) -> list[Dataset]:
        return [ds for ds in self.objects(study_instance_uid) if ds.SOPClassUID == sop_class_uid]

    def objects(self, study_instance_uid: str) -> list[Dataset]:
        found = []
        for instance in self.pacs.json("/instances"):  # type: ignore[attr-defined]
            path = Path(self.config_path.parent / f"{instance}.dcm")
            if not path.exists():
                path.write_bytes(self.pacs.get(f"/instances/{instance}/file"))
            ds = dcmread(path)
            if ds.StudyInstanceUID == study_instance_uid:
                found.append(ds)
        return found

    def report(self, study_instance_uid: str) -> dict[str, object]:
        folder = load_config(self.config_path).storage.results_folder / study_instance_uid
        newest = max(folder.glob("*/report.json"), key=lambda path: path.stat().st_mtime)
        return dict(json.loads(newest.read_text()))


@pytest.fixture(scope="module")
def pacs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    with running_orthanc(tmp_path_factory.mktemp("orthanc")) as orthanc:
        yield orthanc


def start_node(folder: Path, pacs: Orthanc, absent: str = "", thickness_mm: float = 3.0) -> Iterator[RunningNode]:
    port = free_port()
    config_path = folder / "config.yaml"
    data = folder / "data"
    config_path.write_text(CONFIG.format(port=port, folder=data, pacs=pacs, absent=absent, thickness_mm=thickness_mm))
    with (folder / "node.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "node.commands", "serve", "--config", str(config_path)], stdout=log, stderr=log
        )
        try:
            wait_for_port(port, process, folder / "node.log")
            yield RunningNode(port, config_path, pacs)
        finally:
            process.terminate()
            assert process.wait(timeout=60) == 0, (folder / "node.log").read_text()[-3000:]


def wait_for_port(port: int, process: subprocess.Popen[bytes], log: Path, limit_s: float = 90.0) -> None:
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline and process.poll() is None:
        if subprocess.run(["echoscu", "-aec", "QCT-NODE", "-aet", "STORESCU", "127.0.0.1", str(port)]).returncode == 0:
            return
        time.sleep(0.5)
    raise AssertionError(f"the node did not start: {log.read_text()[-3000:]}")


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory, pacs: Orthanc) -> Iterator[RunningNode]:
    yield from start_node(tmp_path_factory.mktemp("node"), pacs)


@pytest.fixture(scope="module")
def commissioned(node: RunningNode, tmp_path_factory: pytest.TempPathFactory) -> RunningNode:
    """Two weekly phantom scans, accepted."""
    config = load_config(node.config_path)
    for week in (1, 0):
        folder = tmp_path_factory.mktemp("phantom")
        acquired = NOW - timedelta(days=7 * week + 1)
        write_phantom(PhantomOrder(folder, slices=20, acquired=acquired, seed=week), config)
        study = node.send(folder)
        assert "ACCEPTED" in str(node.wait_for(study, ENHANCED_SR).to_json())
    return node


def test_a_patient_goes_in_and_seg_and_sr_arrive_in_pacs(commissioned: RunningNode, tmp_path: Path) -> None:
    patient = write_patient(PatientOrder(tmp_path, bmd_mg_cm3=100.0, levels="T12-S", acquired=NOW, seed=2))
    study = commissioned.send(tmp_path)
    assert commissioned.wait_for(study, SEGMENTATION).SegmentSequence
    commissioned.wait_for(study, COMPREHENSIVE_3D_SR)
    text = str(commissioned.wait_for(study, ENHANCED_SR).to_json())
    report = commissioned.report(study)
    assert report["status"] == "reported", report["reasons"]
    assert "mg/cm3" in text and "K2HPO4" in text
    true = {v.name: v.density_mg_cm3 for v in patient.truth}
    for vertebra in report["vertebrae"]:  # type: ignore[attr-defined]
        assert vertebra["bmd_mg_cm3"] == pytest.approx(true[vertebra["level"]], abs=10.0)


def test_an_identical_resend_makes_no_second_result(commissioned: RunningNode, tmp_path: Path) -> None:
    write_phantom(
        PhantomOrder(tmp_path, slices=20, acquired=NOW - timedelta(days=1), seed=5),
        load_config(commissioned.config_path),
    )
    study = commissioned.send(tmp_path)
    commissioned.wait_for(study, ENHANCED_SR)
    first = {ds.SOPInstanceUID for ds in commissioned.objects(study)}
    commissioned.send(tmp_path)
    time.sleep(8)
    assert {ds.SOPInstanceUID for ds in commissioned.objects(study)} == first


def test_late_images_make_a_new_result_that_names_its_predecessor(commissioned: RunningNode, tmp_path: Path) -> None:
    write_patient(PatientOrder(tmp_path / "ct", bmd_mg_cm3=80.0, levels="T12-S", acquired=NOW, seed=4))
    (tmp_path / "late").mkdir()
    for path in sorted((tmp_path / "ct").iterdir())[-3:]:  # the slices nearest to the head: no gap tells of them
        path.rename(tmp_path / "late" / path.name)
    study = commissioned.send(tmp_path / "ct")
    first = commissioned.wait_for(study, ENHANCED_SR)
    commissioned.send(tmp_path / "late")
    deadline = time.monotonic() + 120
    while len(reports := commissioned.of_class(study, ENHANCED_SR)) < 2 and time.monotonic() < deadline:
        time.sleep(0.5)
    (second,) = (ds for ds in reports if ds.SOPInstanceUID != first.SOPInstanceUID)
    (predecessor,) = second.PredecessorDocumentsSequence
    named = predecessor.ReferencedSeriesSequence[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID
    assert named == first.SOPInstanceUID
    assert "PredecessorDocumentsSequence" not in first


@needs_data
@pytest.mark.parametrize("folder", ["acrin-flt-001", "crlm-1004"])
def test_real_ct_is_measured_or_refused_with_a_reason(folder: str, tmp_path: Path, pacs: Orthanc) -> None:
    """What the site had to allow for these old scans: 5-mm slices and a DeviceSerialNumber that de-identification took.

    acrin-flt-001 (140 kV, native) has its own calibration at 140 kV, simulated like it; crlm-1004 has contrast and is
    refused for that.
    """
    real = SHARED_DATA / folder
    for running in start_node(tmp_path, pacs, "DeviceSerialNumber", thickness_mm=5.0):
        config = load_config(running.config_path)
        for week in (1, 0):
            scan = tmp_path / f"phantom-{week}"
            first = dcmread(next(real.iterdir()), stop_before_pixels=True)
            acquired = datetime.strptime(first.StudyDate, "%Y%m%d").replace(tzinfo=UTC) - timedelta(days=7 * week)
            write_phantom(PhantomOrder(scan, like=real, slices=20, acquired=acquired, seed=week), config)
            running.wait_for(running.send(scan), ENHANCED_SR)
        copy = tmp_path / "real"
        shutil.copytree(real, copy)
        study = running.send(copy)
        running.wait_for(study, ENHANCED_SR)
        report = running.report(study)
        codes = {reason["code"] for reason in report["reasons"]}  # type: ignore[attr-defined]
        if folder == "crlm-1004":
            assert report["status"] == "refused" and "CONTRAST_TAG" in codes
        else:
            assert report["status"] == "reported" or codes & {"LEVEL_UNCERTAIN"}, codes
