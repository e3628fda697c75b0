"""`qct-node calibrate` on phantom scans in DICOM: every defect comes back with its code in calibration.json."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from analysis.phantom_types import phantom_spec
from analysis.simulation.phantom_scan import PhantomScanSpec, SimulatedPhantom, simulate_phantom
from tests.analyse_builders import analyse, calibrate
from tests.data import SHARED_DATA, needs_data
from tests.phantom_builders import MODEL_3, SMALL, Defects, PadGeometry, Pose, scan
from tests.synthetic import ramp_volume, write_ct


@dataclass(frozen=True, slots=True)
class Case:
    """A phantom scan and what the configuration says of unit 4541A; `spoil` changes the finished CT in place."""

    spec: PhantomScanSpec
    unit: dict[str, Any] = field(default_factory=dict)
    spoil: Callable[[SimulatedPhantom], None] | None = None


def pad_of(phantom_type: str) -> PhantomScanSpec:
    return scan(phantom=phantom_spec("X", phantom_type), sigma_ref=1.4, beta_ref=0.0, geometry=PadGeometry(pad_hu=-100))


def drift_along_the_scan(simulated: SimulatedPhantom) -> None:
    hu = simulated.volume.hu
    hu += np.linspace(-30, 30, hu.shape[0], dtype=hu.dtype)[:, None, None]


def unsteady_tube(simulated: SimulatedPhantom) -> None:
    """Every slice off by its own amount."""
    hu = simulated.volume.hu
    hu += np.random.default_rng(2).normal(0, 20, hu.shape[0]).astype(hu.dtype)[:, None, None]


def one_bright_slice(simulated: SimulatedPhantom) -> None:
    simulated.volume.hu[5] += 45


def rough_rod(simulated: SimulatedPhantom) -> None:
    """The last rod is twice as noisy as the others."""
    volume, centre = simulated.volume, simulated.rod_centres_lps_mm[-1]
    places = volume.to_lps_mm(np.moveaxis(np.indices(volume.hu.shape), 0, -1).astype(float))
    rod = np.hypot(places[..., 0] - centre[0], places[..., 1] - centre[1]) < simulated.radius_mm
    volume.hu[rod] += np.random.default_rng(3).normal(0, 17, int(rod.sum())).astype(volume.hu.dtype)


SHUFFLED = scan(phantom=replace(MODEL_3, rods=tuple(MODEL_3.rods[i] for i in (2, 0, 4, 1, 3))))
TWO_RODS = {
    "phantom_type": "Siemens OSTEO",
    "material": "HA",
    "rods": [{"name": "water", "density_mg_cm3": 0}, {"name": "bone", "density_mg_cm3": 200}],
}
OPPOSITE_ERRORS = scan(rod_error_hu=(0.0, 0.0, 14.0, -14.0, 0.0))
CASES: dict[str, Case] = {
    "RODS_OUTSIDE_FOV": Case(scan(pose=Pose(shift_mm=(160.0, 0.0, 0.0)))),
    "ROD_DISTURBED": Case(scan(defects=Defects(air_rod=3))),
    "AIR_GAP": Case(scan(defects=Defects(air_gap_mm=25.0))),
    "PHANTOM_MOVED": Case(scan(defects=Defects(moved_mm=6.0), acquisition=replace(SMALL, slices=32))),
    "TOO_FEW_PHANTOM_SLICES": Case(scan(acquisition=replace(SMALL, slices=3))),
    "PHANTOM_TILTED": Case(scan(pose=Pose(tilt_lateral_deg=10.0))),
    "WRONG_PHANTOM": Case(pad_of("Kyoto Kagaku B-MAS200")),
    "NO_FIT_DIAGNOSTICS": Case(pad_of("Siemens OSTEO"), TWO_RODS),
    "ROD_ORDER_DIFFERS": Case(SHUFFLED),
    "ROD_ASSIGNMENT_AMBIGUOUS": Case(SHUFFLED, {"geometry_verified": True}),
    "SLICES_DROPPED": Case(scan(), spoil=one_bright_slice),
    "GATE_R2": Case(OPPOSITE_ERRORS),
    "GATE_SEE": Case(OPPOSITE_ERRORS),
    "GATE_RESIDUAL": Case(OPPOSITE_ERRORS),
    "GATE_ASSIGNMENT": Case(OPPOSITE_ERRORS),
    "GATE_LEAVE_ONE_OUT": Case(scan(rod_error_hu=(0.0, 0.0, 0.0, 0.0, 30.0))),
    "GATE_SIGMA": Case(scan(sigma_ref=2.02)),
    "GATE_BETA": Case(scan(beta_ref=-959.0)),
    "GATE_TILT": Case(scan(pose=Pose(tilt_lateral_deg=7.0))),
    "GATE_VOXELS": Case(scan(acquisition=replace(SMALL, matrix=160, slices=10))),
    "GATE_STANDARD_ERROR": Case(scan(), spoil=unsteady_tube),
    "GATE_AXIAL_SLOPE": Case(scan(), spoil=drift_along_the_scan),
    "GATE_ROD_SD": Case(scan(), spoil=rough_rod),
}  # fmt: skip


def write(case: Case, folder: Path) -> None:
    simulated = simulate_phantom(case.spec)
    if case.spoil:
        case.spoil(simulated)
    write_ct(folder, simulated.volume, series_description="QCT PHANTOM 4541A")


def configured(unit: dict[str, Any], path: Path) -> Path:
    """The published unit with changes."""
    rods = [
        {"name": rod.name, "density_mg_cm3": rod.density_mg_cm3, "water_mg_cm3": rod.water_mg_cm3}
        for rod in MODEL_3.rods
    ]
    published = {"serial": "4541A", "phantom_type": "Mindways Model 3 CT", "material": "K2HPO4", "rods": rods}
    published |= {"rod_diameter_mm": 19, "rod_pitch_mm": 30}
    path.write_text(yaml.safe_dump({"phantoms": [published | unit]}))
    return path


@pytest.mark.parametrize("code", CASES)
def test_a_bad_phantom_scan_is_told_by_its_code(code: str, tmp_path: Path) -> None:
    case = CASES[code]
    write(case, tmp_path / "ct")
    exit_code, answer = calibrate(tmp_path / "ct", tmp_path / "out", configured(case.unit, tmp_path / "config.yaml"))
    found = {one["code"] for one in [*answer["reasons"], *answer.get("findings", [])]}
    assert code in found, (found, answer["gates"])
    finding = code in {"ROD_ORDER_DIFFERS", "SLICES_DROPPED", "NO_FIT_DIAGNOSTICS"}
    assert (exit_code, answer["accepted"]) == ((0, True) if finding else (3, False))


def test_a_patient_scan_names_why_its_phantom_scan_calibrates_nothing(tmp_path: Path) -> None:
    write(CASES["AIR_GAP"], tmp_path / "phantom")
    write_ct(tmp_path / "ct", ramp_volume((12, 16, 24)))
    exit_code, report = analyse(tmp_path / "ct", [tmp_path / "phantom"], tmp_path / "out")
    (why,) = report["reasons"]
    assert exit_code == 3 and why["code"] == "NO_CALIBRATION" and "AIR_GAP" in why["text"]


@needs_data
def test_a_real_quality_phantom_of_single_slices_is_no_calibration_phantom(tmp_path: Path) -> None:
    """Its description ends in a word that is no serial, and each slice is a series of its own."""
    exit_code, answer = calibrate(SHARED_DATA / "phantom-ctqa", tmp_path)
    assert exit_code == 3 and "NOT_A_PHANTOM" in {r["code"] for r in answer["reasons"]}
