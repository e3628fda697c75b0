"""`make demo`: the real node on loopback, fed with simulated phantom scans and patients over real DICOM.

Everything it writes lies below the output folder: one folder per study, `pacs/` with what the PACS received.
"""

import json
import shutil
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from pydicom import dcmread
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from analysis.classification import DEMONSTRATION_MODEL
from analysis.errors import QctError
from node.config import Config
from node.embedded_pacs import EmbeddedPacs
from node.send_folder import Peer, send_folder
from node.simulate import PatientOrder, PhantomOrder, beside, write_patient, write_phantom

CONSOLE = Console(width=None if sys.stdout.isatty() else 140)
PHANTOM_WEEKS = 4
START_LIMIT_S, RESULT_LIMIT_S = 60.0, 240.0
SEGMENTATION_CLASS, ENHANCED_SR_CLASS = "1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.88.22"
COLUMNS = ("patient", "L1", "L2", "mean mg/cm3", "true core", "class", "calibration", "seconds to SR", "folder")
TRUE_BMD_MG_CM3 = (128.0, 97.0, 66.0, 150.0, 84.0, 45.0)

CONFIG = """\
# Written by `qct-node demo`; the reference of every key is config.yaml in the project's folder.
node: {{ae_title: QCT-NODE, bind_address: 127.0.0.1, port: {port}}}
storage: {{folder: {folder}/node}}
receiving: {{peers: [{{ae_title: DEMO, addresses: [127.0.0.0/8]}}]}}
completeness: {{quiet_s: 2}}
destinations:
  - {{name: demo-pacs, ae_title: {pacs_title}, host: 127.0.0.1, port: {pacs_port}}}
calibration_choice: {{commissioning: {{scans: {weeks}}}}}
radiomics: {{model_file: {model}}}
results: {{objects: [segmentation, measurements, report, radiomics, pdf, refusal, phantom report, phantom chart]}}
"""


@dataclass(slots=True)
class DemoStudy:
    """One study sent to the node, and what came back."""

    name: str
    folder: Path
    study_instance_uid: str = ""
    sent_at: float = 0.0
    answered_at: float = 0.0


def run_demo(out: Path, patients: int) -> int:
    """Simulate, serve, send, wait, show; returns the exit code."""
    out = out.resolve()
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    answers: dict[str, float] = {}
    pacs = EmbeddedPacs(out / "pacs", lambda path: _note(path, answers))
    config_path = write_config(out, pacs)
    with Progress(SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), console=CONSOLE) as progress:
        phantoms, studies = _simulate(out, patients, progress)
        node = start_node(config_path, out)
        try:
            peer = Peer("127.0.0.1", wait_for_port(config_path, node), "QCT-NODE", "DEMO")
            _send_and_wait(phantoms, peer, answers, progress, "weekly phantom scans")
            _send_and_wait(studies, peer, answers, progress, "patients")
        finally:
            node.send_signal(signal.SIGTERM)
            node.wait(timeout=60)
            pacs.stop()
    _gather(studies, out)
    _show(studies, out)
    return 0


def _note(path: Path, answers: dict[str, float]) -> None:
    """Remember when the readable report or the refusal of a study arrived."""
    ds = dcmread(path, specific_tags=["SOPClassUID", "StudyInstanceUID"], stop_before_pixels=True)
    if ds.SOPClassUID == ENHANCED_SR_CLASS:
        answers[str(ds.StudyInstanceUID)] = time.monotonic()


def write_config(out: Path, pacs: EmbeddedPacs, weeks: int = PHANTOM_WEEKS) -> Path:
    path = out / "config.yaml"
    path.write_text(
        CONFIG.format(
            port=free_port(), folder=out, pacs_title=pacs.ae_title, pacs_port=pacs.port, weeks=weeks,
            model=DEMONSTRATION_MODEL,
        )  # fmt: skip
    )
    return path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _simulate(out: Path, patients: int, progress: Progress) -> tuple[list[DemoStudy], list[DemoStudy]]:
    """Weekly phantom scans of the last month and the patients of today, simulated by two processes."""
    now = datetime.now(UTC).replace(microsecond=0)
    task = progress.add_task("simulating phantom scans and patients", total=None)
    phantoms, studies, running = [], [], []
    with ProcessPoolExecutor(max_workers=2) as pool:
        for index in range(patients):
            study = DemoStudy(f"patient-{index + 1}", out / f"patient-{index + 1}" / "ct")
            bmd = TRUE_BMD_MG_CM3[index % len(TRUE_BMD_MG_CM3)]
            order = PatientOrder(study.folder, None, bmd, "T11-S", 1.25, acquired=now, seed=index + 1)
            running.append(pool.submit(_simulate_patient, order))
            studies.append(study)
        for week in range(PHANTOM_WEEKS):
            study = DemoStudy(f"phantom-{week + 1}", out / f"phantom-{week + 1}" / "ct")
            acquired = now - timedelta(days=7 * (PHANTOM_WEEKS - 1 - week) + 1)
            running.append(
                pool.submit(_simulate_phantom, PhantomOrder(study.folder, slices=30, acquired=acquired, seed=week))
            )
            phantoms.append(study)
        for job in running:
            job.result()
    progress.update(task, description="simulated phantom scans and patients", total=1, completed=1)
    for study in (*phantoms, *studies):
        first = next(study.folder.glob("*.dcm"))
        study.study_instance_uid = str(dcmread(first, stop_before_pixels=True).StudyInstanceUID)
    return phantoms, studies


def _simulate_patient(order: PatientOrder) -> None:
    write_patient(order)


def _simulate_phantom(order: PhantomOrder) -> None:
    write_phantom(order, Config())


def start_node(config_path: Path, out: Path) -> subprocess.Popen[bytes]:
    log = (out / "node.log").open("wb")
    command = [sys.executable, "-m", "node.commands", "serve", "--config", str(config_path)]
    return subprocess.Popen(command, stdout=log, stderr=log)


def wait_for_port(config_path: Path, node: subprocess.Popen[bytes]) -> int:
    port = int(config_path.read_text().split("port: ")[1].split("}")[0])
    deadline = time.monotonic() + START_LIMIT_S
    while time.monotonic() < deadline and node.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return port
        time.sleep(0.2)
    raise QctError(f"the node did not start within {START_LIMIT_S:g} s; see node.log beside {config_path.name}")


def _send_and_wait(
    studies: list[DemoStudy], peer: Peer, answers: dict[str, float], progress: Progress, what: str
) -> None:
    """Send every study, then wait until the report or refusal of each has arrived in the PACS.

    The limit holds for each next answer: a slow machine takes long for all, only a stuck node gives none.
    """
    task = progress.add_task(f"sending {what}", total=2 * len(studies))
    for study in studies:
        send_folder(study.folder, peer)
        study.sent_at = time.monotonic()
        progress.advance(task)
    progress.update(task, description=f"waiting for results of {what}")
    deadline = time.monotonic() + RESULT_LIMIT_S
    waiting = list(studies)
    while waiting and time.monotonic() < deadline:
        for study in [s for s in waiting if s.study_instance_uid in answers]:
            study.answered_at = answers[study.study_instance_uid]
            waiting.remove(study)
            progress.advance(task)
            deadline = time.monotonic() + RESULT_LIMIT_S
        time.sleep(0.1)
    if waiting:
        raise QctError(f"no result for {', '.join(s.name for s in waiting)} within {RESULT_LIMIT_S:g} s; see node.log")


def _gather(studies: list[DemoStudy], out: Path) -> None:
    """Copy report, picture and DICOM results of each study into its folder."""
    for study in studies:
        results = out / "node" / "results" / study.study_instance_uid
        for path in sorted(results.rglob("*")):
            if path.is_file():
                shutil.copy2(path, study.folder.parent / path.name)


def _show(studies: list[DemoStudy], out: Path) -> None:
    table = Table(title="Results (simulated patients; for research use only)")
    for column in (
        "patient",
        "L1",
        "L2",
        "mean mg/cm3",
        "true, whole core",
        "class",
        "calibration",
        "seconds to SR",
        "folder",
    ):
        table.add_column(column)
    for study in studies:
        table.add_row(*_row(study, out))
    CONSOLE.print(table)
    CONSOLE.print(f"What the PACS received: {out / 'pacs'} ({len(list((out / 'pacs').glob('*.dcm')))} objects)")


def _row(study: DemoStudy, out: Path) -> list[str]:
    report = json.loads((study.folder.parent / "report.json").read_text())
    truth = json.loads(beside(study.folder, "truth.json").read_text())
    true = {v["level"]: v["bmd_mg_cm3"] for v in truth["vertebrae"]}
    seconds = f"{study.answered_at - study.sent_at:.1f}"
    folder = str(study.folder.parent.relative_to(out.parent))
    if report["status"] != "reported":
        why = ", ".join(reason["code"] for reason in report["reasons"])
        return [study.name, "-", "-", "refused", "-", why, "-", seconds, folder]
    by_level = {v["level"]: f"{v['bmd_mg_cm3']:.1f}" for v in report["vertebrae"]}
    mean_true = (true["L1"] + true["L2"]) / 2
    calibration = report["calibration"]
    return [
        study.name,
        by_level.get("L1", "-"),
        by_level.get("L2", "-"),
        f"{report['bmd_mg_cm3']:.1f} ± {report['u_bmd_mg_cm3']:.1f}",
        f"{mean_true:.1f}",
        report["classification"],
        f"{calibration['phantom_serial']}, {calibration['age_days']:.1f} d",
        seconds,
        folder,
    ]
