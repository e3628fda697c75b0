"""Seconds from the last image to the SR in the PACS for a 400-slice 512x512 study, with its parts.

    python -m tests.studies.end_to_end_benchmark [--slices 400]

The node, a small PACS and the sender run on this machine; the configured quiet time is subtracted. Writes
docs/end-to-end-benchmark.md.
"""

import argparse
import json
import os
import signal
import tempfile
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from pydicom import dcmread

from analysis.simulation.patient import simulate_patient
from node.config import Config
from node.demo import ENHANCED_SR_CLASS, start_node, wait_for_port, write_config
from node.embedded_pacs import EmbeddedPacs
from node.send_folder import Peer, send_folder
from node.simulate import PatientOrder, PhantomOrder, patient_spec, write_phantom
from node.simulated_series import SimulatedIdentity, default_header, write_series

QUIET_S = 2.0
RESULT = Path(__file__).resolve().parents[2] / "docs" / "end-to-end-benchmark.md"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slices", type=int, default=400)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        parts = measure(Path(folder), arguments.slices)
    lines = [f"| {name} | {seconds:.2f} |" for name, seconds in parts.items()]
    text = "\n".join(["| part | s |", "|---|---|", *lines])
    print(text)
    command = f"`python -m tests.studies.end_to_end_benchmark --slices {arguments.slices}`"
    where = f"{os.cpu_count()} cores, {datetime.now(UTC):%Y-%m-%d}"
    RESULT.write_text(f"# From the last image to the SR\n\n{command} on {where}.\n\n{text}\n")


def measure(folder: Path, slices: int) -> dict[str, float]:
    now = datetime.now(UTC).replace(microsecond=0)
    arrived: dict[str, float] = {}

    def note(path: Path) -> None:
        ds = dcmread(path, specific_tags=["SOPClassUID", "StudyInstanceUID"], stop_before_pixels=True)
        if ds.SOPClassUID == ENHANCED_SR_CLASS:
            arrived[str(ds.StudyInstanceUID)] = time.monotonic()

    pacs = EmbeddedPacs(folder / "pacs", note)
    config_path = write_config(folder, pacs, weeks=1)
    write_phantom(PhantomOrder(folder / "phantom", acquired=now - timedelta(days=1)), Config())
    _write_long_patient(folder / "patient", slices, now)
    node = start_node(config_path, folder)
    try:
        peer = Peer("127.0.0.1", wait_for_port(config_path, node), "QCT-NODE", "DEMO")
        _answer_s(folder / "phantom", peer, arrived)
        total_s = _answer_s(folder / "patient", peer, arrived)
    finally:
        node.send_signal(signal.SIGTERM)
        node.wait(timeout=60)
        pacs.stop()
    report = json.loads(next((folder / "node" / "results").glob("*/*/report.json")).read_text())
    analysis = {f"analysis: {name}": seconds for name, seconds in report["timings_s"].items()}
    rest_s = total_s - QUIET_S - sum(analysis.values())
    return {
        "last image to SR, quiet time excluded": total_s - QUIET_S,
        **analysis,
        "reading, encoding, sending": rest_s,
    }


def _write_long_patient(folder: Path, slices: int, now: datetime) -> None:
    """T7 to sacrum; the interval is chosen so that the volume holds the wanted number of slices."""
    spec = patient_spec(PatientOrder(folder, levels="T7-S", seed=2), 120.0)
    probe = simulate_patient(
        replace(spec, acquisition=replace(spec.acquisition, rows=64, columns=64, pixel_spacing_mm=7.8))
    )
    interval_mm = 1.25 * probe.volume.hu.shape[0] / slices
    spec = replace(
        spec,
        acquisition=replace(
            spec.acquisition, slice_interval_mm=interval_mm, slice_thickness_mm=interval_mm, n_slices=slices
        ),
    )
    patient = simulate_patient(spec)
    identity = SimulatedIdentity("BENCH-1", "BENCHMARK^1", "SIMULATED ABDOMEN", now, patient_sex="M")
    write_series(patient.volume, default_header(), identity, folder)


def _answer_s(folder: Path, peer: Peer, arrived: dict[str, float]) -> float:
    """Send a study; seconds from its last image to its readable report in the PACS."""
    study = str(dcmread(next(folder.glob("*.dcm")), stop_before_pixels=True).StudyInstanceUID)
    send_folder(folder, peer)
    sent = time.monotonic()
    while study not in arrived:
        if time.monotonic() - sent > 600:
            raise SystemExit("no answer within 600 s")
        time.sleep(0.02)
    return arrived[study] - sent


if __name__ == "__main__":
    main()
