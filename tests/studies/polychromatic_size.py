"""Body size and beam hardening: how wrong a calibration is in a body of another size, and how far correction gets.

    python -m tests.studies.polychromatic_size

Polychromatic CT of elliptical water bodies: W target, 120 kV, 6 mm Al (spekpy), energy-integrating detector, exact
line integrals through ellipses, the usual water correction (polynomial from the polychromatic to the monoenergetic
path), filtered back-projection (Ram-Lak) at the points of the regions. A five-rod phantom lies under a body; the
patient is a body with a vertebra: cancellous bone of 100 mg/cm3, cortex, posterior arch. There is no scatter, no bowtie
and no bone correction: an upper bound of the effect. Writes docs/bmd_body_size.md.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import spekpy
import xraydb
from numpy.typing import NDArray
from scipy.signal import fftconvolve

from analysis.body_size import SizeRule, correct_for_size
from analysis.results import CalibrationLine, ChosenCalibration, Material
from tests.voi_builders import LineSpec, chosen_calibration

DOCS = Path(__file__).resolve().parents[2] / "docs"
KVP, ALUMINIUM_MM = 120.0, 6.0
REFERENCE_KEV = 70.0
ANGLES, DETECTOR_MM, HALF_DETECTOR_MM = 360, 1.0, 330.0
# Mindways Model 3: density of K2HPO4 and of water in each rod, mg/cm3
RODS = ((-51.83, 1012.25), (-53.40, 1056.95), (58.88, 1103.57), (157.05, 1119.52), (375.83, 923.20))
TRUE_BMD_MG_CM3 = 100.0
ALONE = LineSpec(diameter_mm=2.0 * float(np.sqrt(95.0 * 16.0)))  # the pad's own water-equivalent diameter
DISPLACED_CM3_G = 0.2174


@dataclass(frozen=True, slots=True)
class Ellipse:
    """Centre and semi-axes, mm, and what it adds to what lies there already: water and K2HPO4, mg/cm3."""

    x_mm: float
    y_mm: float
    a_mm: float
    b_mm: float
    water_mg_cm3: float
    salt_mg_cm3: float


def spectrum() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Energies keV in 2-keV bins and the weight of each for an energy-integrating detector."""
    beam = spekpy.Spek(kvp=KVP, th=10, dk=2.0)
    beam.filter("Al", ALUMINIUM_MM)
    energies, fluence = beam.get_spectrum()
    weights = energies * fluence
    return energies, weights / weights.sum()


def mass_attenuation_cm2_g(formula: str, energies_kev: NDArray[np.float64]) -> NDArray[np.float64]:
    parts = xraydb.chemparse(formula)
    masses = {element: count * xraydb.atomic_mass(element) for element, count in parts.items()}
    total = sum(masses.values())
    summed = [xraydb.mu_elam(element, energies_kev * 1000.0) * mass / total for element, mass in masses.items()]
    return np.asarray(np.sum(summed, axis=0))


def body(diameter_mm: float) -> Ellipse:
    """A body of 4 : 3 whose water-equivalent diameter is the one given."""
    return Ellipse(0.0, 0.0, diameter_mm / 2 * np.sqrt(4 / 3), diameter_mm / 2 * np.sqrt(3 / 4), 1000.0, 0.0)


def phantom_scene(diameter_mm: float, *, inside: bool = False) -> tuple[list[Ellipse], list[Ellipse]]:
    """Five rods in a pad below the body (0: the pad alone), or in the body where the spine would be; the rods last."""
    base = [body(diameter_mm)] if diameter_mm else []
    y = 35.0 if inside else (base[0].b_mm if base else 0.0) + 24.0
    pad = Ellipse(0.0, y, 95.0, 16.0, 0.0 if inside else 1000.0, 0.0)
    rods = [Ellipse(35.0 * k - 70.0, y, 9.0, 9.0, water - 1000.0, salt) for k, (salt, water) in enumerate(RODS)]
    return [*base, pad, *rods], rods


def patient_scene(diameter_mm: float) -> tuple[list[Ellipse], Ellipse]:
    """A body with a vertebra 35 mm behind its centre; the cancellous section last."""
    displaced = DISPLACED_CM3_G
    cortex, arch, inside = 700.0, 350.0, TRUE_BMD_MG_CM3
    shell = Ellipse(0.0, 35.0, 22.0, 17.0, -displaced * cortex, cortex)
    core = Ellipse(0.0, 35.0, 21.0, 16.0, -displaced * (inside - cortex), inside - cortex)
    arches = [Ellipse(x, 66.0, 6.0, 14.0, -displaced * arch, arch) for x in (-17.0, 17.0)]
    return [body(diameter_mm), shell, *arches, core], core


class Scanner:
    """Polychromatic parallel-beam CT of ellipses of water and K2HPO4."""

    def __init__(self) -> None:
        self.energies, self.weights = spectrum()
        self.water = mass_attenuation_cm2_g("H2O", self.energies)
        self.salt = mass_attenuation_cm2_g("K2HPO4", self.energies)
        self.mono_water = float(mass_attenuation_cm2_g("H2O", np.array([REFERENCE_KEV]))[0])
        self.angles = np.arange(ANGLES) * np.pi / ANGLES
        self.positions = np.arange(-HALF_DETECTOR_MM, HALF_DETECTOR_MM + 0.5, DETECTOR_MM)
        self.correction = self._water_correction()

    def mean_hu(self, scene: list[Ellipse], region: Ellipse) -> float:
        """Mean HU over an ellipse of 0.55 of the region's axes."""
        grid = np.linspace(-0.55, 0.55, 11)
        x, y = np.meshgrid(grid, grid)
        inside = x**2 + y**2 <= 0.55**2
        points = np.stack([region.x_mm + x[inside] * region.a_mm, region.y_mm + y[inside] * region.b_mm], axis=1)
        attenuation = self._reconstruct(self._sinogram(scene), points)
        return float(1000.0 * (attenuation.mean() / self.mono_water - 1.0))

    def _sinogram(self, scene: list[Ellipse]) -> NDArray[np.float64]:
        """Corrected projections, (angles, positions), as g/cm2 of water times its attenuation."""
        water, salt = (np.zeros((len(self.angles), len(self.positions))) for _ in range(2))
        for ellipse in scene:
            path_cm = self._chord_mm(ellipse) / 10.0
            water += path_cm * ellipse.water_mg_cm3 / 1000.0
            salt += path_cm * ellipse.salt_mg_cm3 / 1000.0
        transmitted = np.zeros_like(water)
        for weight, mu_water, mu_salt in zip(self.weights, self.water, self.salt, strict=True):
            transmitted += weight * np.exp(-mu_water * water - mu_salt * salt)
        return np.asarray(np.polyval(self.correction, -np.log(transmitted)))

    def _chord_mm(self, ellipse: Ellipse) -> NDArray[np.float64]:
        cos, sin = np.cos(self.angles)[:, None], np.sin(self.angles)[:, None]
        half2 = (ellipse.a_mm * cos) ** 2 + (ellipse.b_mm * sin) ** 2
        offset = self.positions[None, :] - ellipse.x_mm * cos - ellipse.y_mm * sin
        return 2 * ellipse.a_mm * ellipse.b_mm * np.sqrt(np.maximum(half2 - offset**2, 0.0)) / half2

    def _water_correction(self) -> NDArray[np.float64]:
        """Polynomial of degree 5 from the polychromatic to the monoenergetic projection of 0-60 cm of water."""
        depth_cm = np.linspace(0.0, 60.0, 200)
        poly = -np.log(np.exp(-np.outer(depth_cm, self.water)) @ self.weights)
        return np.asarray(np.polyfit(poly, self.mono_water * depth_cm, 5))

    def _reconstruct(self, sinogram: NDArray[np.float64], points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Attenuation 1/cm at points, filtered back-projection with the Ram-Lak kernel."""
        count = len(self.positions)
        taps = np.arange(-count + 1, count)
        odd = taps % 2 == 1
        kernel = np.zeros(len(taps))
        kernel[odd] = -1.0 / (np.pi * taps[odd] * DETECTOR_MM) ** 2
        kernel[count - 1] = 1.0 / (4 * DETECTOR_MM**2)
        result = np.zeros(len(points))
        for angle, row in zip(self.angles, sinogram, strict=True):
            filtered = fftconvolve(row, kernel)[count - 1 : 2 * count - 1] * DETECTOR_MM
            result += np.interp(points[:, 0] * np.cos(angle) + points[:, 1] * np.sin(angle), self.positions, filtered)
        return result * np.pi / len(self.angles) * 10.0


def calibrate(scanner: Scanner, diameter_mm: float, *, inside: bool = False) -> CalibrationLine:
    """The Mindways fit: HU - rho_water = sigma_ref rho_salt + beta_ref."""
    scene, rods = phantom_scene(diameter_mm, inside=inside)
    salt, water = np.array(RODS).T
    hu = np.array([scanner.mean_hu(scene, rod) for rod in rods])
    sigma_ref, beta_ref = np.polyfit(salt, hu - water, 1)
    template = chosen_calibration(LineSpec()).line
    return replace(
        template,
        material=Material.K2HPO4,
        sigma_ref=float(sigma_ref),
        beta_ref=float(beta_ref),
        sigma_ct=float(sigma_ref) - DISPLACED_CM3_G,
        beta_ct=float(beta_ref) + 999.6,
    )


def chosen(lines: dict[float, CalibrationLine], own_mm: float, others_mm: tuple[float, ...]) -> ChosenCalibration:
    """A calibration at one size with set-ups of other sizes beside it."""
    base = chosen_calibration(LineSpec(diameter_mm=own_mm))
    return replace(base, line=lines[own_mm], setup_diameters=tuple((mm, lines[mm]) for mm in others_mm))


RULES = {
    "25 and 36 cm, position corrected": SizeRule(correct_position=True),
    "rods inside 30 cm": SizeRule(rod_path_share=1.0),
}


def _cell(hu: float, choice: ChosenCalibration, patient_mm: float, rule: SizeRule) -> str:
    """Error of the density and the stated standard uncertainty of size and position, mg/cm3."""
    corrected, terms, _ = correct_for_size(choice, patient_mm, rule)
    error = corrected.line.to_bmd_mg_cm3(hu) - TRUE_BMD_MG_CM3
    return f"{error:+.1f} ({np.hypot.reduce([term.u_mg_cm3 for term in terms]):.1f})"


def study() -> str:
    """Tables: the line by size; error and stated uncertainty of a 100 mg/cm3 spine by what was calibrated."""
    scanner = Scanner()
    sizes = (200.0, 250.0, 300.0, 360.0)
    lines = {mm: calibrate(scanner, mm) for mm in sizes}
    alone = calibrate(scanner, 0.0)
    out = ["| phantom under a body of | sigma_CT HU per mg/cm3 | beta_CT HU |", "|---|---|---|"]
    out.append(f"| nothing (pad alone) | {alone.sigma_ct:.3f} | {alone.beta_ct:+.1f} |")
    out += [f"| {mm / 10:.0f} cm | {line.sigma_ct:.3f} | {line.beta_ct:+.1f} |" for mm, line in lines.items()]
    slope = np.polyfit(np.log(sizes), [np.log(lines[mm].sigma_ct) for mm in sizes], 1)[0]
    out += ["", f"sigma_CT follows size^{slope:.2f}.", ""]
    choices = {
        "pad alone": replace(chosen(lines, 300.0, ()), calibration=chosen_calibration(ALONE).calibration, line=alone),
        "30 cm": chosen(lines, 300.0, ()),
        "25 and 36 cm": chosen(lines, 250.0, (360.0,)),
        "25 and 36 cm, position corrected": chosen(lines, 250.0, (360.0,)),
        "rods inside 30 cm": replace(chosen(lines, 300.0, ()), line=calibrate(scanner, 300.0, inside=True)),
    }
    out += ["| patient D_w | HU | " + " | ".join(f"{name}: error (stated u)" for name in choices) + " |"]
    out += ["|---" * (len(choices) + 2) + "|"]
    for patient_mm in (250.0, 280.0, 300.0, 320.0, 360.0, 400.0):
        scene, region = patient_scene(patient_mm)
        hu = scanner.mean_hu(scene, region)
        cells = [_cell(hu, choice, patient_mm, RULES.get(name, SizeRule())) for name, choice in choices.items()]
        out.append(f"| {patient_mm / 10:.0f} cm | {hu:.1f} | " + " | ".join(cells) + " |")
    return "\n".join(out)


def main() -> None:
    text = f"# Body size in polychromatic CT\n\nMade by `python -m tests.studies.polychromatic_size`.\n\n{study()}\n"
    (DOCS / "bmd_body_size.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
