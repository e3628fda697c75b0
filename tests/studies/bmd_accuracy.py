"""How near the measured BMD comes to the known density of simulated spines, and how well it repeats.

    python -m tests.studies.bmd_accuracy accuracy --spines 50
    python -m tests.studies.bmd_accuracy repositioning --spines 8

Writes a table to docs/bmd_accuracy.md or docs/bmd_repositioning.md. The scanner's line is known exactly, so every
difference comes from VOI, noise, partial volume and exclusions. Truth is the known density under the VOI's weights,
vein and islands left out (`voi`), and the mean of the whole cancellous core (`core`).
"""

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from analysis.bmd import measure_vertebra
from analysis.errors import VoiError
from analysis.results import Segmentation, Voi
from analysis.simulation.patient import PatientSpec, SimulatedPatient, random_patient, scan_torso
from analysis.simulation.torso import make_torso
from analysis.vertebra_checks import check_vertebra
from analysis.voi import place_voi
from tests.voi_builders import LineSpec, chosen_calibration, ragged, segmentation_from_maps

DOCS = Path(__file__).resolve().parents[2] / "docs"
LEVELS = ("L1", "L2")


@dataclass(frozen=True, slots=True)
class Measured:
    """One vertebra. Densities mg/cm3; `rejected` holds the reason codes when it was not measured."""

    seed: int
    level: str
    bmd: float
    truth_voi: float
    truth_core: float
    covered: float
    excluded: float
    cortex_voxels: int
    rejected: str = ""
    noise_mg_cm3: float = np.nan  # the budget's term "VOI noise"


def spine_spec(seed: int) -> PatientSpec:
    """L1 and L2 of a random patient without the organs far from them, on a small field of view."""
    spec = random_patient(seed, "L1", "L2")
    acquisition = replace(spec.acquisition, rows=100, columns=100, pixel_spacing_mm=0.8, table=False)
    torso = replace(spec.torso, spine_only=True, margin_mm=14.0)
    return replace(spec, torso=torso, acquisition=acquisition, model_spacing_mm=0.9)


def measure(patient: SimulatedPatient, segmentation: Segmentation, seed: int) -> Iterator[Measured]:
    """Measure L1 and L2 with the simulator's own line."""
    tissue, acquisition = patient.spec.tissue, patient.spec.acquisition
    sigma = tissue.sigma_hu_per_mg * (1 - acquisition.slope_loss)
    cores = {truth.name: truth.density_mg_cm3 for truth in patient.truth}
    for level in LEVELS:
        reasons = check_vertebra(patient.volume, segmentation, level)
        if reasons:
            yield Measured(seed, level, *[np.nan] * 5, 0, " ".join(reason.code for reason in reasons))
            continue
        try:
            voi = place_voi(patient.volume, segmentation, level)
        except VoiError as error:
            yield Measured(seed, level, *[np.nan] * 5, 0, error.code)
            continue
        box = tuple(slice(a, a + n) for a, n in zip(voi.start, voi.weights.shape, strict=True))
        weights, density = voi.weights, patient.density_mg_cm3[box]
        known = weights * (density != 0)  # 0 is "not cancellous bone"; fatty marrow has densities below 0
        mean_hu = float((weights * patient.volume.hu[box]).sum() / weights.sum())
        yield Measured(
            seed=seed,
            level=level,
            bmd=(mean_hu - tissue.beta_hu) / sigma,
            truth_voi=float((known * density).sum() / known.sum()),
            truth_core=cores[level],
            covered=voi.cancellous_fraction,
            excluded=voi.excluded_fraction,
            cortex_voxels=int(((weights > 0) & (patient.body[box] == 2)).sum()),
            noise_mg_cm3=_noise_term(patient, voi),
        )


def _noise_term(patient: SimulatedPatient, voi: Voi) -> float:
    line = chosen_calibration(LineSpec(patient.spec.tissue.sigma_hu_per_mg, patient.spec.tissue.beta_hu))
    terms = measure_vertebra(patient.volume, voi, line).terms
    return next(term.u_mg_cm3 for term in terms if term.name == "VOI noise")


def perfect(patient: SimulatedPatient) -> Segmentation:
    return segmentation_from_maps(patient.volume, patient.labels, patient.body)


def accuracy(count: int) -> str:
    """Random spines with perfect masks and with edges that wander by one to two voxels."""
    exact, wandering = [], []
    for seed in range(count):
        spec = spine_spec(seed)
        patient = scan_torso(make_torso(spec.torso, spec.model_spacing_mm), spec)
        segmentation = perfect(patient)
        exact += list(measure(patient, segmentation, seed))
        wandering += list(measure(patient, ragged(segmentation, patient.volume, seed), seed))
        for m in (*exact[-2:], *wandering[-2:]):
            print(f"{m.seed} {m.level} {m.bmd - m.truth_voi:+.2f} {m.covered:.2f} {m.rejected}", flush=True)
    head = (
        "masks",
        "measured",
        "rejected",
        "mean error",
        "sd",
        "largest",
        "within 2",
        "against core: mean, sd",
        "covered",
    )
    lines = ["| " + " | ".join((*head, "cortex voxels")) + " |", "|---" * (len(head) + 1) + "|"]
    lines += [_accuracy_row("true", exact), _accuracy_row("edges wander 1-2 voxels", wandering)]
    rejected = [f"{m.seed}/{m.level} {m.rejected}" for m in exact if m.rejected]
    lines += ["", "Rejected (true masks): " + (", ".join(rejected) or "none")]
    worst = sorted((m for m in exact if not m.rejected), key=lambda m: -abs(m.bmd - m.truth_voi))[:5]
    lines += ["", "Largest errors: " + ", ".join(f"{m.seed}/{m.level} {m.bmd - m.truth_voi:+.2f}" for m in worst)]
    return "\n".join(lines)


def _accuracy_row(name: str, measured: list[Measured]) -> str:
    good = [m for m in measured if not m.rejected]
    error = np.array([m.bmd - m.truth_voi for m in good])
    core = np.array([m.bmd - m.truth_core for m in good])
    covered = np.array([m.covered for m in good])
    cortex = sum(m.cortex_voxels for m in good)
    return (
        f"| {name} | {len(good)} | {len(measured) - len(good)} | {error.mean():+.2f} | {error.std(ddof=1):.2f} "
        f"| {np.abs(error).max():.2f} | {(np.abs(error) <= 2).mean():.0%} | {core.mean():+.2f}, {core.std(ddof=1):.2f} "
        f"| {covered.min():.2f}-{covered.max():.2f} | {cortex} |"
    )


def repositioned_specs(spec: PatientSpec, seed: int) -> Iterator[tuple[str, PatientSpec]]:
    """The same body again: shifted by less than a voxel, turned, other pixel sizes, other slices, other noise."""
    rng = np.random.default_rng([seed, 5])

    def again(name: str, **changes: object) -> tuple[str, PatientSpec]:
        new = replace(spec.acquisition, seed=int(rng.integers(1 << 30)), **changes)  # type: ignore[arg-type]
        return name, replace(spec, acquisition=new)

    yield again("as it was")
    yield again("shifted", centre_shift_mm=tuple(float(v) for v in rng.uniform(-0.6, 0.6, 3)))
    for degrees in (7.0, 15.0):
        angles = tuple(float(v) for v in rng.choice([-1, 1], 3) * np.array([degrees, degrees, degrees]) * [1, 0.5, 0.5])
        name, turned = again(f"turned {degrees:g} degrees")
        yield name, replace(turned, torso=replace(turned.torso, angles_deg=angles))  # type: ignore[arg-type]
    yield again("pixel 0.60 mm", pixel_spacing_mm=0.6, rows=134, columns=134)
    yield again("pixel 0.98 mm", pixel_spacing_mm=0.9765625, rows=82, columns=82)
    for thickness in (0.625, 2.5, 3.0):
        yield again(f"slices {thickness:g} mm", slice_thickness_mm=thickness, slice_interval_mm=thickness)


def repositioning(count: int) -> str:
    """RMSSD per vertebra and of the L1-L2 mean over the repeated scans, with true masks."""
    values: dict[str, list[list[float]]] = {level: [] for level in (*LEVELS, "mean")}
    differences: dict[str, list[float]] = {}
    used = seed = 0
    while used < count:
        spec = spine_spec(1000 + seed)
        spec = replace(spec, torso=replace(spec.torso, spine=replace(spec.torso.spine, fractures=())))
        series = _repeated(spec, seed)
        seed += 1
        if series is None:
            continue
        used += 1
        for level in LEVELS:
            values[level].append([scan[level] for _, scan in series])
        values["mean"].append([(scan["L1"] + scan["L2"]) / 2 for _, scan in series])
        for name, scan in series:
            differences.setdefault(name, []).append((scan["L1"] + scan["L2"]) / 2 - values["mean"][-1][0])
    lines = ["| value | spines | scans each | RMSSD mg/cm3 |", "|---|---|---|---|"]
    for name, rows in values.items():
        variance = np.array([np.var(row, ddof=1) for row in rows])
        lines.append(f"| {name} | {len(rows)} | {len(rows[0])} | {np.sqrt(variance.mean()):.2f} |")
    lines += ["", "| scan | mean difference of the L1-L2 mean | sd |", "|---|---|---|"]
    lines += [f"| {name} | {np.mean(d):+.2f} | {np.std(d, ddof=1):.2f} |" for name, d in differences.items()]
    return "\n".join(lines)


def _repeated(spec: PatientSpec, seed: int) -> list[tuple[str, dict[str, float]]] | None:
    """BMD by level of each repeated scan; None when a vertebra of this spine is rejected."""
    torsos = {}
    series = []
    for name, again in repositioned_specs(spec, seed):
        angles = again.torso.angles_deg
        if angles not in torsos:
            torsos[angles] = make_torso(again.torso, again.model_spacing_mm)
        patient = scan_torso(torsos[angles], again)
        found = {m.level: m.bmd for m in measure(patient, perfect(patient), seed) if not m.rejected}
        if len(found) < len(LEVELS):
            return None
        series.append((name, found))
    return series


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("study", choices=("accuracy", "repositioning"))
    parser.add_argument("--spines", type=int, default=50)
    arguments = parser.parse_args()
    start_s = time.perf_counter()
    study = {"accuracy": accuracy, "repositioning": repositioning}[arguments.study]
    table = study(arguments.spines)
    command = f"python -m tests.studies.bmd_accuracy {arguments.study} --spines {arguments.spines}"
    text = f"# BMD of simulated spines: {arguments.study}\n\nMade by `{command}`.\n\n{table}\n"
    (DOCS / f"bmd_{arguments.study}.md").write_text(text)
    print(f"{text}\n{time.perf_counter() - start_s:.0f} s")


if __name__ == "__main__":
    main()
