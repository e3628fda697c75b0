"""Simulated cohorts for texture: blocks of marrow of known density, scanned by the simulator's scanner.

Only the block around each VOI is built, so that hundreds of spines take minutes. Density, texture (strength, grain,
patches), body size, noise, kernel, pixel size and the vertebra's tilt vary from patient to patient; point spread, slice
profile and noise spectrum are those of `analysis.simulation.scanner`. The link between density and texture is an
assumption: with less bone the trabecular pattern gets coarser and, in absolute terms, weaker.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from analysis.extraction_contract import ExtractionContract
from analysis.radiomic_features import extract_features
from analysis.results import Voi
from analysis.simulation.scanner import KERNELS, AcquisitionSpec, Kernel, OutputGrid, add_noise, spread_volume
from analysis.simulation.shapes import Grid, pose_from_angles
from analysis.training.radiomics_table import Acquisition, StudyFeatures, class_of
from analysis.volume import CtVolume, axial_affine

HALF_BLOCK_MM = (15.0, 22.0, 27.0)  # z, y, x: half the built block, with room for the blur
HALF_IMAGE_MM = (11.0, 17.0, 22.0)
MODEL_SPACING_MM = 0.75
SUBVOXELS = 3  # along each axis, for the partial-volume weights of the VOI
LEVELS = ("L1", "L2")


@dataclass(frozen=True, slots=True)
class CohortRule:
    """How the simulated patients are distributed; means and standard deviations, or ranges."""

    bmd_mg_cm3: tuple[float, float] = (105.0, 38.0)
    bmd_range_mg_cm3: tuple[float, float] = (25.0, 230.0)
    level_sd_mg_cm3: float = 4.0
    reference_sd_mg_cm3: float = 3.0  # of the measured density that gives the class
    texture_mg_cm3: tuple[float, float, float] = (14.0, 0.07, 4.0)  # offset, per mg/cm3 of density, SD
    grain_mm: tuple[float, float, float] = (1.30, -0.0022, 0.15)  # offset, per mg/cm3 of density, SD
    patch_mg_cm3: tuple[float, float] = (3.0, 10.0)
    sigma_hu_per_mg: tuple[float, float] = (1.36, 0.05)  # differs with body size and is not known to the texture
    beta_hu: tuple[float, float] = (1.0, 4.0)
    noise_hu: tuple[float, float] = (8.0, 22.0)
    pixel_mm: tuple[float, float] = (0.7, 0.98)
    kernels: tuple[Kernel, ...] = (Kernel.SOFT, Kernel.STANDARD)
    slice_mm: float = 1.25
    semi_axes_mm: tuple[float, float] = (14.8, 9.8)  # of the VOI, lateral and forward
    size_sd: float = 0.06
    tilt_deg: tuple[float, float] = (2.0, 6.0)
    limits_mg_cm3: tuple[float, float] = (80.0, 120.0)


@dataclass(frozen=True, slots=True)
class SimulatedSpine:
    """What defines one simulated patient."""

    seed: int
    bmd_mg_cm3: tuple[float, float]  # of L1 and L2
    measured_bmd_mg_cm3: float
    texture_mg_cm3: float
    grain_mm: float
    patch_mg_cm3: float
    sigma_hu_per_mg: float
    beta_hu: float
    acquisition: AcquisitionSpec
    semi_axes_mm: tuple[float, float]
    depth_mm: float
    tilt_deg: float


def draw_spine(seed: int, rule: CohortRule | None = None) -> SimulatedSpine:
    """One patient; the same seed gives the same patient."""
    rule = rule or CohortRule()
    rng = np.random.default_rng([seed, 77])
    bmd = float(np.clip(rng.normal(*rule.bmd_mg_cm3), *rule.bmd_range_mg_cm3))
    each = bmd + rule.level_sd_mg_cm3 * rng.standard_normal(2)
    size = 1 + rule.size_sd * float(rng.standard_normal())
    acquisition = AcquisitionSpec(
        pixel_spacing_mm=float(rng.uniform(*rule.pixel_mm)), slice_interval_mm=rule.slice_mm,
        slice_thickness_mm=rule.slice_mm, kernel=rule.kernels[int(rng.integers(len(rule.kernels)))],
        noise_sd_hu=float(rng.uniform(*rule.noise_hu)), seed=seed,
    )  # fmt: skip
    return SimulatedSpine(
        seed=seed,
        bmd_mg_cm3=(float(each[0]), float(each[1])),
        measured_bmd_mg_cm3=float(each.mean() + rule.reference_sd_mg_cm3 * rng.standard_normal()),
        texture_mg_cm3=_linked(rule.texture_mg_cm3, bmd, rng, 4.0),
        grain_mm=_linked(rule.grain_mm, bmd, rng, 0.6),
        patch_mg_cm3=float(rng.uniform(*rule.patch_mg_cm3)),
        sigma_hu_per_mg=float(rng.normal(*rule.sigma_hu_per_mg)),
        beta_hu=float(rng.normal(*rule.beta_hu)),
        acquisition=acquisition,
        semi_axes_mm=(rule.semi_axes_mm[0] * size, rule.semi_axes_mm[1] * size),
        depth_mm=9.0,
        tilt_deg=float(rng.normal(*rule.tilt_deg)),
    )


def _linked(line: tuple[float, float, float], bmd: float, rng: np.random.Generator, lowest: float) -> float:
    offset, slope, sd = line
    return max(float(offset + slope * bmd + sd * rng.standard_normal()), lowest)


def scan_vertebra(spine: SimulatedSpine, index: int) -> tuple[CtVolume, Voi]:
    """CT of the block around one vertebra's VOI, and the VOI."""
    grid = _block()
    hu_block = spine.sigma_hu_per_mg * _density(spine, index, grid) + spine.beta_hu
    out = _image_grid(spine.acquisition)
    spec = spine.acquisition
    boxes = (spec.slice_thickness_mm, spec.pixel_spacing_mm, spec.pixel_spacing_mm)
    hu, _ = spread_volume(hu_block.astype(np.float32), grid, out, boxes, KERNELS[spec.kernel])
    rng_spec = AcquisitionSpec(
        pixel_spacing_mm=spec.pixel_spacing_mm, slice_interval_mm=spec.slice_interval_mm,
        slice_thickness_mm=spec.slice_thickness_mm, kernel=spec.kernel, noise_sd_hu=spec.noise_sd_hu,
        seed=spec.seed * 2 + index,
    )  # fmt: skip
    add_noise(hu, rng_spec, (0.0, 0.0), out)
    affine = axial_affine(boxes, (float(out.x_mm[0]), float(out.y_mm[0]), float(out.z_mm[0])))
    volume = CtVolume(np.clip(np.rint(hu), -1024, 3071).astype(np.int16), affine)
    return volume, _voi(spine, LEVELS[index], out)


def _block() -> Grid:
    shape = tuple(2 * int(np.ceil(half / MODEL_SPACING_MM)) + 1 for half in HALF_BLOCK_MM)
    origin = tuple(-MODEL_SPACING_MM * (n - 1) / 2 for n in reversed(shape))
    return Grid((shape[0], shape[1], shape[2]), (origin[0], origin[1], origin[2]), MODEL_SPACING_MM,
                pose_from_angles((0.0, 0.0, 0.0), (0.0, 0.0, 0.0)))  # fmt: skip


def _density(spine: SimulatedSpine, index: int, grid: Grid) -> NDArray[np.float32]:
    """Gaussian texture of two scales about the vertebra's mean."""
    rng = np.random.default_rng([spine.seed, 78, index])
    values = np.full(grid.shape, spine.bmd_mg_cm3[index], np.float32)
    for sd, scale_mm in ((spine.texture_mg_cm3, spine.grain_mm), (spine.patch_mg_cm3, 6.0)):
        white = rng.standard_normal(grid.shape, dtype=np.float32)
        noise = gaussian_filter(white, scale_mm / MODEL_SPACING_MM, mode="wrap")
        values += sd * noise / float(noise.std())
    return values


def _image_grid(acquisition: AcquisitionSpec) -> OutputGrid:
    steps = (acquisition.slice_interval_mm, acquisition.pixel_spacing_mm, acquisition.pixel_spacing_mm)
    z, y, x = (_centred(step, half) for step, half in zip(steps, HALF_IMAGE_MM, strict=True))
    return OutputGrid(z, y, x)


def _centred(step_mm: float, half_mm: float) -> NDArray[np.float64]:
    n = int(half_mm / step_mm)
    return np.asarray(step_mm * np.arange(-n, n + 1), dtype=np.float64)


def _voi(spine: SimulatedSpine, level: str, out: OutputGrid) -> Voi:
    """An elliptical cylinder across the tilted axis, as partial-volume weights."""
    z, y, x = (_split(axis) for axis in out.axes_mm)
    tilt = np.radians(spine.tilt_deg)
    along = z[:, None, None] * np.cos(tilt) + y[None, :, None] * np.sin(tilt)
    forward = y[None, :, None] * np.cos(tilt) - z[:, None, None] * np.sin(tilt)
    lateral, deep = spine.semi_axes_mm
    oval = (x[None, None, :] / lateral) ** 2 + (forward / deep) ** 2 <= 1
    inside = (np.abs(along) <= spine.depth_mm / 2) & oval
    n = SUBVOXELS
    shape = [size for axis in out.shape for size in (axis, n)]
    weights = inside.reshape(shape).mean(axis=(1, 3, 5)).astype(np.float32)
    normal = (0.0, float(np.sin(tilt)), float(np.cos(tilt)))
    volume = float(np.pi * lateral * deep * spine.depth_mm)
    return Voi(level, weights, (0, 0, 0), (0.0, 0.0, 0.0), normal, spine.semi_axes_mm, spine.depth_mm, 0.65, volume,
               0.0, "simulated")  # fmt: skip


def _split(axis_mm: NDArray[np.float64]) -> NDArray[np.float64]:
    """Positions of the parts of each voxel along one axis."""
    step = axis_mm[1] - axis_mm[0]
    parts = ((np.arange(SUBVOXELS) + 0.5) / SUBVOXELS - 0.5) * step
    return np.asarray((axis_mm[:, None] + parts[None, :]).ravel())


def describe_spine(
    seed: int, rule: CohortRule | None = None, contract: ExtractionContract | None = None
) -> StudyFeatures | None:
    """One simulated patient as a row of the training table; None where a VOI cannot be described."""
    rule = rule or CohortRule()
    spine = draw_spine(seed, rule)
    found = [extract_features(*scan_vertebra(spine, index), contract) for index in range(len(LEVELS))]
    if any(features.reason for features in found):
        return None
    spec = spine.acquisition
    return StudyFeatures(
        patient=f"SIM-{seed:06d}",
        study=f"SIM-{seed:06d}",
        classification=class_of(spine.measured_bmd_mg_cm3, rule.limits_mg_cm3),
        bmd_mg_cm3=spine.measured_bmd_mg_cm3,
        values={features.level: features.values for features in found},
        n_voxels={features.level: float(features.n_voxels) for features in found},
        acquisition=Acquisition(
            "SIMULATED", spec.kernel.value.upper(), 120.0, spec.slice_thickness_mm, spec.slice_interval_mm,
            round(spec.pixel_spacing_mm, 4),
        ),
    )  # fmt: skip


def simulate_cohort(
    seeds: range, rule: CohortRule | None = None, contract: ExtractionContract | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> Iterator[StudyFeatures]:
    """The rows of many simulated patients, one after the other."""
    for done, seed in enumerate(seeds, 1):
        row = describe_spine(seed, rule, contract)
        progress(done)
        if row is not None:
            yield row
