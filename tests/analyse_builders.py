"""`qct-node analyse` in the tests: the command itself, and simulated patients with findings as DICOM series.

Each patient is small (250-mm field, 3-mm slices) and shows the sacrum, without which no level has a sure name.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
from typer.testing import CliRunner

from analysis.simulation.marrow import MarrowSpec
from analysis.simulation.patient import PatientSpec, SimulatedPatient, simulate_patient
from analysis.simulation.physics import Phase
from analysis.simulation.scanner import AcquisitionSpec
from analysis.simulation.spine_curve import Fracture, Variant
from node.commands import app
from node.config import Config
from node.simulate import PatientOrder, PhantomOrder, patient_spec, write_phantom
from tests.synthetic import ACQUIRED, write_ct

Paint = Callable[[SimulatedPatient], None]


@dataclass(frozen=True, slots=True)
class Patient:
    """What a simulated scan shows. paint : changes the finished CT in place."""

    first: str = "L1"
    last: str = "S"
    marrow: MarrowSpec = field(default_factory=lambda: densities(L1=101.0, L2=99.0))
    fractures: tuple[Fracture, ...] = ()
    variant: Variant = Variant.USUAL
    phase: Phase = Phase.NATIVE
    noise_sd_hu: float = 12.0
    margin_mm: float = 12.0  # of the field of view above the first level
    columns: int = 256
    paint: Paint | None = None


def densities(texture_sd_mg_cm3: float = 22.0, patch_sd_mg_cm3: float = 6.0, **by_level: float) -> MarrowSpec:
    """Cancellous bone of 100 mg/cm3 but for these levels."""
    return MarrowSpec(
        100.0,
        densities_mg_cm3=tuple(by_level.items()),
        texture_sd_mg_cm3=texture_sd_mg_cm3,
        patch_sd_mg_cm3=patch_sd_mg_cm3,
    )


def spec_of(patient: Patient) -> PatientSpec:
    usual = patient_spec(PatientOrder(Path(), levels=f"{patient.first}-{patient.last}", bmd_mg_cm3=100.0), 120.0)
    spine = replace(usual.torso.spine, fractures=patient.fractures, variant=patient.variant)
    torso = replace(usual.torso, spine=spine, marrow=patient.marrow, margin_mm=patient.margin_mm, spine_only=True)
    scanner = AcquisitionSpec(
        rows=256,
        columns=patient.columns,
        slice_interval_mm=3.0,
        slice_thickness_mm=3.0,
        noise_sd_hu=patient.noise_sd_hu,
        table=False,
        seed=1,
    )
    return PatientSpec(torso, replace(usual.tissue, phase=patient.phase), scanner, model_spacing_mm=1.0)


def write_patient(patient: Patient, folder: Path, change: Any = None) -> None:
    """Simulate and write; `change(index, dataset)` may alter the headers, as in `write_ct`."""
    simulated = simulate_patient(spec_of(patient))
    if patient.paint:
        patient.paint(simulated)
    write_ct(folder, simulated.volume, change, patient_sex="F", patient_birth_date="19640101")


def ball(level: str, hu: float, radius_mm: float, noise_sd_hu: float = 12.0) -> Paint:
    """A ball of one CT number, with the scan's noise, in the front of a vertebral body."""

    def paint(patient: SimulatedPatient) -> None:
        volume = patient.volume
        centre = np.array(next(v.centroid_lps_mm for v in patient.truth if v.name == level)) + [0, -3, 0]
        middle, reach = volume.to_index(centre), radius_mm / np.array(volume.spacing_mm)
        offsets = np.meshgrid(
            *(np.arange(n) - m for n, m in zip(volume.hu.shape, middle, strict=True)), indexing="ij", sparse=True
        )
        inside = sum((o / r) ** 2 for o, r in zip(offsets, reach, strict=True)) < 1.0
        noise = np.random.default_rng(5).normal(0, noise_sd_hu, int(inside.sum()))
        volume.hu[inside] = np.rint(hu + noise)

    return paint


def daily_phantom(folder: Path, config: Config | None = None) -> Path:
    """An accepted phantom scan of the day before, on the scanner of the default header."""
    write_phantom(PhantomOrder(folder, slices=16, acquired=ACQUIRED - timedelta(days=1)), config or Config())
    return folder


def analyse(folder: Path, phantoms: list[Path], out: Path, config: Path | None = None) -> tuple[int, dict[str, Any]]:
    """Exit code and report of `qct-node analyse`."""
    options = [item for one in phantoms for item in ("--phantom", str(one))]
    return _answer(["analyse", str(folder), *options], out, "report.json", config)


def analyse_stored(folder: Path, out: Path, config: Path) -> tuple[int, dict[str, Any]]:
    """Exit code and report of `qct-node analyse --stored`."""
    return _answer(["analyse", str(folder), "--stored"], out, "report.json", config)


def calibrate(folder: Path, out: Path, config: Path | None = None, *options: str) -> tuple[int, dict[str, Any]]:
    """Exit code and answer of `qct-node calibrate`."""
    return _answer(["calibrate", str(folder), *options], out, "calibration.json", config)


def _answer(command: list[str], out: Path, written: str, config: Path | None) -> tuple[int, dict[str, Any]]:
    options = ["--config", str(config)] if config else []
    done = CliRunner().invoke(app, [*command, *options, "--out", str(out)])
    assert done.exit_code in (0, 2, 3), done.output + repr(done.exception)
    return done.exit_code, json.loads((out / written).read_text())
