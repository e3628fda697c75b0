"""Cross-check of the HU scale and of the BMD with the patient's own air, fat, muscle and blood.

Tissues of known composition give their expected CT numbers at the scan's effective energy (method of Michalski 2020,
here with the energy from tube voltage and body size instead of from cortical bone, which partial volume spoils). The
line of measured on expected HU corrects the physical HU per mg/cm3. It is a plausibility check (12.6 +/- 13.2 mg/cm3
in the literature) and never the reported value.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy
from numpy.typing import NDArray

from analysis.refusals import reason
from analysis.results import Material, Reason, Segmentation, VertebraLevel
from analysis.volume import CtVolume

ENERGIES_KEV = (50.0, 60.0, 70.0, 80.0, 90.0, 100.0)
# Mass attenuation, cm2/g, ICRU-44 compositions with the Elam tables of xraydb (agree with NIST XCOM within 1 %).
MASS_ATTENUATION_CM2_G = {
    "air": (0.20796, 0.18747, 0.17497, 0.16625, 0.15956, 0.15411),
    "fat": (0.21231, 0.19738, 0.18747, 0.18004, 0.17399, 0.16884),
    "muscle": (0.22626, 0.20478, 0.19157, 0.18229, 0.17515, 0.16930),
    "blood": (0.22779, 0.20568, 0.19215, 0.18268, 0.17543, 0.16951),
    "water": (0.22694, 0.20587, 0.19285, 0.18366, 0.17655, 0.17072),
    Material.K2HPO4: (0.55738, 0.38904, 0.30152, 0.25077, 0.21875, 0.19715),
    Material.HA: (0.58667, 0.40671, 0.31312, 0.25894, 0.22484, 0.20189),
}
DENSITY_G_CM3 = {"air": 0.0012, "fat": 0.95, "muscle": 1.05, "blood": 1.06}  # ICRU-44
# Water that one gram of the salt displaces, cm3: Mindways' constant, and 1 / 3.16 g/cm3 for apatite.
DISPLACED_CM3_G = {Material.K2HPO4: 0.2174, Material.HA: 0.316}
# HU per mg/cm3 K2HPO4 behind 30 cm of water by tube voltage, and its power law in the diameter (docs/bmd.md).
MODEL_SIGMA = ((80.0, 1.807), (100.0, 1.508), (120.0, 1.329), (140.0, 1.207))
MODEL_EXPONENT = 0.20
MODEL_DIAMETER_MM = 300.0
# Where each tissue's most frequent value is looked for, HU; wider than what is plausible.
AIR_HU, FAT_HU, MUSCLE_HU = (-1050.0, -900.0), (-160.0, -50.0), (-10.0, 100.0)


@dataclass(frozen=True, slots=True)
class Tissues:
    """Measured HU of the patient's own references; None where none was found."""

    air_hu: float | None
    fat_hu: float | None
    muscle_hu: float | None
    blood_hu: float | None


@dataclass(frozen=True, slots=True)
class TissueLimits:
    """Plausible HU; outside, the HU scale is suspect.

    outside : "refuse" or "warn"; what to do then
    """

    outside: Literal["refuse", "warn"] = "refuse"
    air_hu: tuple[float, float] = (-1030.0, -970.0)
    fat_hu: tuple[float, float] = (-130.0, -70.0)
    muscle_hu: tuple[float, float] = (-5.0, 75.0)
    blood_hu: tuple[float, float] = (-20.0, 75.0)


def measure_tissues(volume: CtVolume, segmentation: Segmentation, blood_hu: float | None) -> Tissues:
    """Air around, subcutaneous and visceral fat, and muscle beside and behind the lumbar spine.

    blood_hu : of the aorta, from the contrast step; None when it is enhanced
    """
    levels = [level for level in segmentation.levels if level.name in ("T12", "L1", "L2", "L3")]
    slabs = [_slab(volume, segmentation, level) for level in levels or list(segmentation.levels)]
    air = _mode(np.concatenate([_air(hu) for hu, _ in slabs]), AIR_HU)
    fat = _mode(np.concatenate([hu[hu < -20] for hu, _ in slabs]), FAT_HU)
    muscle = _mode(np.concatenate([hu[near] for hu, near in slabs]), MUSCLE_HU)
    return Tissues(air, fat, muscle, blood_hu)


def check_hu_scale(tissues: Tissues, limits: TissueLimits | None = None) -> tuple[Reason, ...]:
    """One reason for each tissue outside its plausible CT number, and one when neither fat nor muscle was found.

    Every body holds both; without either, their CT numbers lie outside even the range in which they are looked for.
    """
    limits = limits or TissueLimits()
    if tissues.fat_hu is None and tissues.muscle_hu is None:
        return (reason("HU_SCALE", f"nothing reads like fat ({_range(FAT_HU)}) or muscle ({_range(MUSCLE_HU)})"),)
    pairs = (
        ("air", tissues.air_hu, limits.air_hu),
        ("fat", tissues.fat_hu, limits.fat_hu),
        ("muscle", tissues.muscle_hu, limits.muscle_hu),
        ("blood", tissues.blood_hu, limits.blood_hu),
    )
    return tuple(
        reason("HU_SCALE", f"{name} reads {hu:.0f} HU; expected {_range((low, high))}")
        for name, hu, (low, high) in pairs
        if hu is not None and not low <= hu <= high
    )


def _range(limits: tuple[float, float]) -> str:
    return f"{limits[0]:g} to {limits[1]:g} HU"


def internal_bmd_mg_cm3(
    tissues: Tissues, mean_hu: float, scan: tuple[float, float], material: Material
) -> float | None:
    """Density of a mean HU without a phantom; None when fewer than three tissues were found.

    scan : tube voltage kV, water-equivalent diameter mm
    """
    energy_kev = effective_energy_kev(*scan)
    measured = {"air": tissues.air_hu, "fat": tissues.fat_hu, "muscle": tissues.muscle_hu, "blood": tissues.blood_hu}
    pairs = [(expected_hu(name, energy_kev), hu) for name, hu in measured.items() if hu is not None]
    if len(pairs) < 3:
        return None
    expected, found = np.array(pairs).T
    slope, intercept = np.polyfit(expected, found, 1)
    return float((mean_hu - intercept) / (slope * model_sigma(material, energy_kev)))


def effective_energy_kev(kvp: float, diameter_mm: float) -> float:
    """The energy at which K2HPO4 gives the modelled HU per mg/cm3 for this voltage and size."""
    voltages, sigmas = np.array(MODEL_SIGMA).T
    sigma = float(np.interp(kvp, voltages, sigmas)) * (diameter_mm / MODEL_DIAMETER_MM) ** -MODEL_EXPONENT
    energies = np.arange(ENERGIES_KEV[0], ENERGIES_KEV[-1] + 0.25, 0.25)
    modelled = np.array([model_sigma(Material.K2HPO4, energy) for energy in energies])
    return float(energies[np.argmin(np.abs(modelled - sigma))])


def model_sigma(material: Material, energy_kev: float) -> float:
    """HU per mg/cm3 of the salt in water at one energy, displaced water taken into account."""
    water = mass_attenuation_cm2_g("water", energy_kev)
    return (mass_attenuation_cm2_g(material, energy_kev) - DISPLACED_CM3_G[material] * water) / water


def expected_hu(tissue: str, energy_kev: float) -> float:
    """CT number of a tissue of ICRU-44 composition and density at one energy."""
    water = mass_attenuation_cm2_g("water", energy_kev)
    return 1000.0 * (DENSITY_G_CM3[tissue] * mass_attenuation_cm2_g(tissue, energy_kev) / water - 1.0)


def mass_attenuation_cm2_g(material: str, energy_kev: float) -> float:
    """Log-log interpolation of the table."""
    logs = np.interp(np.log(energy_kev), np.log(ENERGIES_KEV), np.log(MASS_ATTENUATION_CM2_G[material]))
    return float(np.exp(logs))


def _slab(
    volume: CtVolume, segmentation: Segmentation, level: VertebraLevel
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """About 6 mm of slices around a centroid, averaged, and the muscle region beside and behind the vertebra."""
    index = volume.to_index(np.array(level.centroid_lps_mm))
    half = max(0, round(3.0 / volume.spacing_mm[0]))
    first = max(0, round(float(index[0])) - half)
    slices = slice(first, max(first + 1, min(first + 2 * half + 1, volume.hu.shape[0])))
    hu = np.asarray(volume.hu[slices], dtype=np.float32).mean(axis=0)
    bone = (segmentation.labels[slices] > 0).any(axis=0)
    rows, columns = np.ogrid[: hu.shape[0], : hu.shape[1]]
    back_mm = (rows - index[1]) * volume.affine[1, 1] + (columns - index[2]) * volume.affine[1, 2]
    side_mm = np.abs((rows - index[1]) * volume.affine[0, 1] + (columns - index[2]) * volume.affine[0, 2])
    near = (side_mm < 70) & (back_mm > -10) & (back_mm < 70) & ~scipy.ndimage.binary_dilation(bone, iterations=4)
    smooth: NDArray[np.float32] = scipy.ndimage.gaussian_filter(hu, 1.5 / volume.spacing_mm[1])
    return smooth, np.asarray(near)


def _air(hu: NDArray[np.float32]) -> NDArray[np.float32]:
    """Air around the body, away from skin and table; padding is -1024 exactly and is left out."""
    pure = scipy.ndimage.binary_erosion((hu < -900.0) & (hu > -1023.5), iterations=3)
    return np.asarray(hu[pure])


def _mode(hu: NDArray[np.float32], limits: tuple[float, float]) -> float | None:
    """The most frequent value between two limits, from a smoothed histogram of 1 HU; None with too few voxels."""
    inside = hu[(hu > limits[0]) & (hu < limits[1])]
    if inside.size < 200:
        return None
    counts, edges = np.histogram(inside, bins=np.arange(limits[0], limits[1] + 1.0))
    peak = int(np.argmax(scipy.ndimage.gaussian_filter1d(counts.astype(float), 4.0)))
    near = inside[np.abs(inside - edges[peak] - 0.5) < 15.0]
    return float(near.mean())
