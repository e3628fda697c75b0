"""BMD of unusual patients and poor scans: whether a wrong number is ever reported with confidence.

    python -m tests.studies.bmd_robustness --spines 4

Each condition changes one thing of random simulated spines (tests.studies.bmd_accuracy). "Confident and wrong" is a
vertebra that was measured with an error against the known density of its VOI beyond twice the uncertainty that its own
budget states for VOI noise and placement, and beyond 2 mg/cm3. Writes docs/bmd_robustness.md.
"""

import argparse
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from analysis.bmd import BmdUncertainties
from analysis.simulation.patient import PatientSpec, scan_torso
from analysis.simulation.torso import make_torso
from tests.studies.bmd_accuracy import DOCS, Measured, measure, perfect, spine_spec
from tests.voi_builders import ragged


def spine(**changes: object) -> Callable[[PatientSpec], PatientSpec]:
    def changed(spec: PatientSpec) -> PatientSpec:
        new = replace(spec.torso.spine, **changes)  # type: ignore[arg-type]
        return replace(spec, torso=replace(spec.torso, spine=new))

    return changed


def scan(**changes: object) -> Callable[[PatientSpec], PatientSpec]:
    return lambda spec: replace(spec, acquisition=replace(spec.acquisition, **changes))  # type: ignore[arg-type]


def osteoporotic(spec: PatientSpec) -> PatientSpec:
    density = 20.0 + spec.torso.seed % 3 * 10.0
    return replace(spec, torso=replace(spec.torso, marrow=replace(spec.torso.marrow, density_mg_cm3=density)))


CONDITIONS: dict[str, Callable[[PatientSpec], PatientSpec]] = {
    "as drawn": lambda spec: spec,
    "slices of 3 mm": scan(slice_thickness_mm=3.0, slice_interval_mm=3.0),
    "slices of 5 mm": scan(slice_thickness_mm=5.0, slice_interval_mm=5.0),
    "noise SD 60 HU": scan(noise_sd_hu=60.0),
    "20 to 40 mg/cm3": osteoporotic,
    "20 to 40 mg/cm3, noise SD 60 HU": lambda spec: scan(noise_sd_hu=60.0)(osteoporotic(spec)),
    "scoliosis 35 degrees": spine(bend_deg=35.0, bend_apex=13.5),
    "lordosis 70 degrees": spine(lordosis_deg=70.0, sacral_slope_deg=56.0),
    "flat back, lordosis 10 degrees": spine(lordosis_deg=10.0, sacral_slope_deg=13.0),
    "small woman, -2 SD": spine(male=False, size=0.90),
    "tiny woman, -3 SD": spine(male=False, size=0.85),
    "large man, +3 SD": spine(male=True, size=1.15),
}


def examine(name: str, count: int) -> str:
    """One row of the table, true masks and ragged ones together."""
    found: list[Measured] = []
    for seed in range(2000, 2000 + count):
        spec = spine_spec(seed)
        spec = replace(spec, torso=replace(spec.torso, margin_mm=24.0))  # so that no slice thickness cuts a vertebra
        spec = CONDITIONS[name](spine(fractures=())(spec))
        patient = scan_torso(make_torso(spec.torso, spec.model_spacing_mm), spec)
        masks = perfect(patient)
        for segmentation in (masks, ragged(masks, patient.volume, seed)):
            found += measure(patient, segmentation, seed)
    good = [m for m in found if not m.rejected]
    rejected = sorted(f"{m.level} {' '.join(sorted(set(m.rejected.split())))}" for m in found if m.rejected)
    error = np.array([m.bmd - m.truth_voi for m in good] or [np.nan])
    wrong = sum(abs(m.bmd - m.truth_voi) > max(2.0, 2.0 * _stated(m)) for m in good)
    return (
        f"| {name} | {len(good)} of {len(found)} | {error.mean():+.2f} | {error.std():.2f} | {np.abs(error).max():.2f} "
        f"| {wrong} | {', '.join(rejected) or 'none'} |"
    )


def _stated(measured: Measured) -> float:
    return float(np.hypot(measured.noise_mg_cm3, BmdUncertainties().placement_fraction * measured.bmd))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--spines", type=int, default=4)
    spines = parser.parse_args().spines
    lines = ["| condition | measured | mean error | sd | largest | confident and wrong | rejected |", "|---" * 7 + "|"]
    for name in CONDITIONS:
        lines.append(examine(name, spines))
        print(lines[-1], flush=True)
    command = f"python -m tests.studies.bmd_robustness --spines {spines}"
    text = "# BMD of unusual patients and poor scans\n\n"
    text += f"Made by `{command}`: {spines} spines each, mg/cm3, with true and with ragged masks.\n\n"
    (DOCS / "bmd_robustness.md").write_text(text + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
