"""One call from parameters to a patient's CT with its truth.

`simulate_patient` gives the CT in HU, VerSe labels, the body map and the known density of every cancellous voxel;
the density has passed through the same blur as the CT, so HU = sigma * density + beta away from cortex and islands,
up to noise.
"""

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from analysis.simulation.marrow import BODY_CANCELLOUS, Extras, MarrowSpec
from analysis.simulation.organs import BuildSpec
from analysis.simulation.physics import TissueSpec, add_table, paint_torso
from analysis.simulation.scanner import (
    KERNELS,
    AcquisitionSpec,
    OutputGrid,
    add_artefacts,
    add_noise,
    pad_outside_circle,
    project,
    spread_volume,
)
from analysis.simulation.shapes import Field, Grid
from analysis.simulation.spine_curve import Fracture, FractureKind, SpineSpec, Variant
from analysis.simulation.torso import Torso, TorsoSpec, make_torso
from analysis.volume import CtVolume, axial_affine


@dataclass(frozen=True, slots=True)
class PatientSpec:
    """Everything that defines a simulated patient scan."""

    torso: TorsoSpec = field(default_factory=TorsoSpec)
    tissue: TissueSpec = field(default_factory=TissueSpec)
    acquisition: AcquisitionSpec = field(default_factory=AcquisitionSpec)
    model_spacing_mm: float = 0.75               # of the spine's model grid


@dataclass(frozen=True, slots=True, eq=False)
class VertebraTruth:
    """What is known of one vertebra. `density_mg_cm3`: mean of the cancellous core without vein and islands."""

    name: str
    label: int
    centroid_lps_mm: tuple[float, float, float]
    axis_lps: tuple[float, float, float]
    density_mg_cm3: float
    complete: bool                               # False: cut by the edge of the CT


@dataclass(frozen=True, slots=True, eq=False)
class SimulatedPatient:
    """A CT with its truth, all arrays (slices, rows, columns).

    labels : uint8, VerSe numbering (T13 = 28, L6 = 25, sacrum 26)
    body : uint8, 1 posterior elements, 2 body cortex, 3 body cancellous bone
    density_mg_cm3 : float32, K2HPO4 equivalent in cancellous bone of the bodies, 0 elsewhere
    """

    volume: CtVolume
    labels: NDArray[np.uint8]
    body: NDArray[np.uint8]
    density_mg_cm3: Field
    truth: tuple[VertebraTruth, ...]
    spec: PatientSpec


def simulate_patient(spec: PatientSpec) -> SimulatedPatient:
    """Build, scan and describe one patient."""
    return scan_torso(make_torso(spec.torso, spec.model_spacing_mm), spec)


def scan_torso(torso: Torso, spec: PatientSpec) -> SimulatedPatient:
    """Scan an existing torso: the same body may be scanned again with another protocol."""
    out = output_grid(torso, spec.acquisition)
    hu = _scan(torso, spec, out)
    labels = _nearest(torso.spine.labels, torso.spine.grid, out)
    body = _nearest(torso.body, torso.spine.grid, out)
    density = _density_on(torso, body, out, spec.acquisition)
    spacing = (spec.acquisition.slice_interval_mm, spec.acquisition.pixel_spacing_mm, spec.acquisition.pixel_spacing_mm)
    affine = axial_affine(spacing, (float(out.x_mm[0]), float(out.y_mm[0]), float(out.z_mm[0])))
    volume = CtVolume(np.clip(np.rint(hu), -2000, 3071).astype(np.int16), affine)
    return SimulatedPatient(volume, labels, body, density, _truth(torso, labels, out), spec)


def _scan(torso: Torso, spec: PatientSpec, out: OutputGrid) -> Field:
    loss = 1 - spec.acquisition.slope_loss
    tissue = replace(spec.tissue, sigma_hu_per_mg=spec.tissue.sigma_hu_per_mg * loss)
    coarse, fine = paint_torso(torso, tissue, spec.torso.marrow.density_mg_cm3)
    if spec.acquisition.table:
        add_table(coarse, torso)
    hu = project(torso, coarse, fine, out, spec.acquisition)
    centres = np.array([v.centroid_lps_mm for v in torso.levels])
    spine = (float(centres[:, 0].mean()), float(centres[:, 1].mean()))
    add_artefacts(hu, spec.acquisition, spine, out)
    add_noise(hu, spec.acquisition, spine, out)
    pad_outside_circle(hu, spec.acquisition)
    return hu


def output_grid(torso: Torso, acquisition: AcquisitionSpec) -> OutputGrid:
    """Voxel centres of the CT: centred on the built body in x and y, all of its height in z."""
    grid, shift = torso.organs.grid, acquisition.centre_shift_mm
    middle = [grid.origin_lps_mm[k] + grid.spacing_mm * (grid.shape[2 - k] - 1) / 2 + shift[k] for k in range(3)]
    if torso.organs.tissue.any():
        rows = np.flatnonzero((torso.organs.tissue > 0).any(axis=(0, 2)))
        middle[1] = float(grid.axis_mm(1)[rows[[0, -1]]].mean()) + shift[1]
    height = grid.spacing_mm * grid.shape[0]
    n = acquisition.n_slices or max(int(height // acquisition.slice_interval_mm), 1)

    def centred(count: int, step: float, centre: float) -> NDArray[np.float64]:
        return np.asarray(centre + step * (np.arange(count) - (count - 1) / 2), dtype=np.float64)

    return OutputGrid(centred(n, acquisition.slice_interval_mm, middle[2]),
                      centred(acquisition.rows, acquisition.pixel_spacing_mm, middle[1]),
                      centred(acquisition.columns, acquisition.pixel_spacing_mm, middle[0]))


def _nearest(values: NDArray[np.uint8], grid: Grid, out: OutputGrid) -> NDArray[np.uint8]:
    """Label at each voxel centre, 0 outside the grid."""
    result = np.zeros(out.shape, np.uint8)
    picks, windows = [], []
    for axis in range(3):
        index = np.rint((out.axes_mm[axis] - grid.axis_mm(axis)[0]) / grid.spacing_mm).astype(int)
        inside = np.flatnonzero((index >= 0) & (index < grid.shape[axis]))
        picks.append(index[inside])
        windows.append(inside)
    result[np.ix_(*windows)] = values[np.ix_(*picks)]
    return result


def _density_on(torso: Torso, body: NDArray[np.uint8], out: OutputGrid, acquisition: AcquisitionSpec) -> Field:
    """Density blurred and sampled like the CT, normalised by the blurred share of cancellous bone."""
    cancellous = ((torso.body == BODY_CANCELLOUS) & ~np.isfinite(torso.special_hu)).astype(np.float32)
    boxes = (acquisition.slice_thickness_mm, acquisition.pixel_spacing_mm, acquisition.pixel_spacing_mm)
    kernel = KERNELS[acquisition.kernel]
    share, window = spread_volume(cancellous, torso.spine.grid, out, boxes, kernel)
    amount, _ = spread_volume(torso.density_mg_cm3 * cancellous, torso.spine.grid, out, boxes, kernel)
    result = np.zeros(out.shape, np.float32)
    keep = (body[window] == BODY_CANCELLOUS) & (share > 0.3)
    result[window] = np.where(keep, amount / np.maximum(share, 0.3), np.float32(0))
    return result


def _truth(torso: Torso, labels: NDArray[np.uint8], out: OutputGrid) -> tuple[VertebraTruth, ...]:
    """The levels that the CT shows, from head to feet."""
    present = np.bincount(labels[:, ::2, ::2].ravel(), minlength=32)
    low, high = (np.array([a[k] for a in out.axes_mm])[::-1] for k in (0, -1))
    found = []
    for level in torso.levels:
        centre = np.array(level.centroid_lps_mm)
        inside = bool(np.all((centre > low + 12) & (centre < high - 12)))
        if present[level.label]:
            found.append(VertebraTruth(level.name, level.label, level.centroid_lps_mm, level.axis_lps,
                                       level.density_mg_cm3, level.complete and inside))
    return tuple(found)


def random_patient(seed: int, first: str = "T10", last: str = "S") -> PatientSpec:
    """A patient drawn from wide ranges: both sexes, 40-90 years, usual variants and findings, usual protocols."""
    rng = np.random.default_rng(seed)
    male, size = bool(rng.random() < 0.5), float(np.clip(rng.normal(1, 0.05), 0.88, 1.13))
    fat = float(np.clip(rng.gamma(4, 5), 6, 45))
    lordosis = float(np.clip(rng.normal(40, 9), 18, 62))
    spine = SpineSpec(male=male, size=size, lordosis_deg=lordosis,
                      kyphosis_deg=float(np.clip(rng.normal(30, 7), 14, 50)),
                      sacral_slope_deg=6 + 0.72 * lordosis + float(rng.normal(0, 3)),   # lying: the trunk stays level
                      bend_deg=float(rng.normal(0, 5)),
                      bend_apex=float(rng.uniform(10, 15)), disc_factor=float(rng.uniform(0.7, 1.1)),
                      variant=_random_variant(rng), level_jitter=tuple(float(v) for v in rng.normal(1, 0.025, 20)),
                      fractures=_random_fractures(rng, first))
    build = BuildSpec(male=male, size=size, fat_mm=fat, visceral_fat=float(rng.uniform(0.6, 2.0)),
                      bowel_gas=float(rng.uniform(0.05, 0.5)))
    marrow = MarrowSpec(density_mg_cm3=float(rng.uniform(30, 220)), texture_sd_mg_cm3=float(rng.uniform(12, 32)),
                        texture_scale_mm=float(rng.uniform(0.7, 1.5)), patch_sd_mg_cm3=float(rng.uniform(2, 10)))
    island = (str(rng.choice(["L1", "L2", "T12"])), float(rng.uniform(2, 4)))
    extras = Extras(islands=(island,) if rng.random() < 0.1 else (),
                    osteophyte_mm=float(max(rng.normal(0, 2), 0)), concavity_mm=float(rng.uniform(1, 3.2)),
                    short_last_rib=float(rng.uniform(0.5, 1.0)))
    torso = TorsoSpec(spine, build, marrow, extras, first, last, float(rng.uniform(0, 20)),
                      tuple(float(v) for v in rng.normal(0, 3, 3)), seed=seed)  # type: ignore[arg-type]
    tissue = TissueSpec(fat_in_muscle=float(rng.uniform(0, 0.45)), cortex_hu=float(rng.uniform(800, 1350)),
                        body_cortex_mm=float(rng.uniform(0.3, 0.6)), seed=seed)
    acquisition = AcquisitionSpec(noise_sd_hu=float(rng.uniform(8, 22)), seed=seed)
    return PatientSpec(torso, tissue, acquisition)


def _random_variant(rng: np.random.Generator) -> Variant:
    return list(Variant)[int(rng.choice(4, p=[0.88, 0.04, 0.04, 0.04]))]


def _random_fractures(rng: np.random.Generator, first: str) -> tuple[Fracture, ...]:
    if rng.random() > 0.15:
        return ()
    level = str(rng.choice(["T12", "L1", "L2", "L3", "T11"]))
    return (Fracture(level, list(FractureKind)[int(rng.integers(3))], float(rng.uniform(0.2, 0.5))),)
