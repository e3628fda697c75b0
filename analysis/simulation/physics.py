"""From label maps to CT numbers: painting with partial volume, blur, slice profile, resampling, noise, artefacts.

Tissue HU: means measured on native and contrast CT at 120 kV. Cancellous bone: HU = sigma * density + beta. Blur: Gaussian
in-plane point spread (soft kernels MTF50 about 0.3-0.45 /mm, sharp 0.6-1.0 /mm with overshoot). Noise: power spectrum
f * exp(-(f/fc)^2), the form of filtered back-projection with an apodised ramp (Riederer 1978), correlated along z.
"""

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray
from scipy import fft
from scipy.special import erf

from analysis.simulation.organs import Tissue
from analysis.simulation.shapes import Field, Grid
from analysis.simulation.skeleton import BoneMap, Part
from analysis.simulation.torso import Torso


class Phase(StrEnum):
    NATIVE = "native"
    ARTERIAL = "arterial"
    PORTAL = "portal"


class Kernel(StrEnum):
    SOFT = "soft"
    STANDARD = "standard"
    SHARP = "sharp"


@dataclass(frozen=True, slots=True)
class KernelShape:
    """Gaussian sigma of the point spread, share and width ratio of the subtracted lobe, noise cut-off."""

    sigma_mm: float
    overshoot: float
    noise_cutoff_per_mm: float


KERNELS = {Kernel.SOFT: KernelShape(0.65, 0.0, 0.28), Kernel.STANDARD: KernelShape(0.50, 0.0, 0.36),
           Kernel.SHARP: KernelShape(0.38, 0.35, 0.70)}
_LOBE_RATIO = 2.2                # width of the subtracted lobe of sharp kernels

_NATIVE_HU = {
    Tissue.AIR: -1000, Tissue.SKIN: 20, Tissue.FAT: -105, Tissue.MUSCLE: 52, Tissue.LUNG: -830, Tissue.LIVER: 55,
    Tissue.SPLEEN: 45, Tissue.KIDNEY: 32, Tissue.AORTA: 42, Tissue.VEIN: 40, Tissue.HEART: 42, Tissue.BOWEL: 25,
    Tissue.BOWEL_GAS: -980, Tissue.STOOL: 10, Tissue.STOMACH: 25, Tissue.PANCREAS: 38, Tissue.GALLBLADDER: 8,
    Tissue.BLADDER: 5, Tissue.DISC: 78, Tissue.CSF: 12, Tissue.CORD: 36, Tissue.CARTILAGE: 110, Tissue.PARASPINAL: 42,
    Tissue.TABLE: -120, Tissue.MATTRESS: -890, Tissue.BONE: 700, Tissue.METAL: 3071, Tissue.CEMENT: 1900,
    Tissue.VISCERAL_FAT: -102,
}
_ENHANCED_HU = {
    Phase.ARTERIAL: {Tissue.AORTA: 320, Tissue.VEIN: 60, Tissue.HEART: 180, Tissue.KIDNEY: 150, Tissue.LIVER: 65,
                     Tissue.SPLEEN: 125, Tissue.PANCREAS: 90},
    Phase.PORTAL: {Tissue.AORTA: 155, Tissue.VEIN: 145, Tissue.HEART: 140, Tissue.KIDNEY: 190, Tissue.LIVER: 105,
                   Tissue.SPLEEN: 120, Tissue.PANCREAS: 85, Tissue.MUSCLE: 62, Tissue.PARASPINAL: 50},
}


@dataclass(frozen=True, slots=True)
class TissueSpec:
    """CT numbers of one patient."""

    phase: Phase = Phase.NATIVE
    fat_in_muscle: float = 0.1                   # of the paraspinal muscles, 0..0.6
    fat_in_liver: float = 0.0                    # steatosis lowers the liver by about 1 HU per percent
    cortex_hu: float = 1150.0
    body_cortex_mm: float = 0.45
    oral_contrast: bool = False
    sigma_hu_per_mg: float = 1.30                # the true line of this scan
    beta_hu: float = 2.0
    jitter_hu: float = 4.0                       # between patients, per tissue
    seed: int = 0


@dataclass(frozen=True, slots=True)
class AcquisitionSpec:
    """Scanner, protocol and reconstruction. z of the slices follows from the torso unless `n_slices` bounds them."""

    rows: int = 512
    columns: int = 512
    pixel_spacing_mm: float = 0.9765625
    slice_interval_mm: float = 1.25
    slice_thickness_mm: float = 1.25
    kernel: Kernel = Kernel.STANDARD
    noise_sd_hu: float = 12.0                    # at the spine
    cupping_hu: float = 0.0                      # lowering in the middle of the body
    slope_loss: float = 0.0                      # relative loss of the bone's contrast by body size
    streak_hu: float = 250.0                     # round metal
    table: bool = True
    padding_hu: float = -1024.0                  # outside the reconstruction circle
    centre_shift_mm: tuple[float, float, float] = (0.0, 0.0, 0.0)
    n_slices: int | None = None
    seed: int = 0


def tissue_table(spec: TissueSpec) -> NDArray[np.float32]:
    """HU by tissue code for one patient."""
    hu = {**_NATIVE_HU, **_ENHANCED_HU.get(spec.phase, {})}
    rng = np.random.default_rng([spec.seed, 17])
    table = np.zeros(max(Tissue) + 1, np.float32)
    for tissue in Tissue:
        soft = -50 < hu[tissue] < 400
        table[tissue] = hu[tissue] + (spec.jitter_hu * float(rng.normal()) if soft else 0.0)
    table[Tissue.PARASPINAL] -= 150 * spec.fat_in_muscle
    table[Tissue.LIVER] -= 100 * spec.fat_in_liver
    if spec.oral_contrast:
        table[Tissue.BOWEL], table[Tissue.STOMACH] = 140, 220
    return table


# shell thickness in mm (0: from the spec), and core HU above that of the marrow line, by bone part
_SHELL_MM = {Part.POSTERIOR: 1.0, Part.BODY: 0.0, Part.SACRUM: 0.8, Part.RIB: 0.9, Part.PELVIS: 1.3, Part.OTHER: 1.2}
_CORE_DENSITY_SHARE = {Part.POSTERIOR: 1.7, Part.BODY: 1.0, Part.SACRUM: 0.75, Part.RIB: 1.1, Part.PELVIS: 1.0,
                       Part.OTHER: 1.1}


def paint_bone(soft_hu: Field, bones: BoneMap, spec: TissueSpec, density_mg_cm3: Field | float) -> Field:
    """Bone over soft tissue: shell and core by their share of each voxel, from the distance to the surface."""
    codes = range(max(Part) + 1)
    shell = np.array([_SHELL_MM.get(Part(c), 0.0) or spec.body_cortex_mm if c else 0.0 for c in codes], np.float32)
    share = np.array([_CORE_DENSITY_SHARE[Part(c)] if c else 0.0 for c in codes], np.float32)
    near = np.flatnonzero(bones.distance.ravel() < bones.grid.spacing_mm)
    inward = -bones.distance.ravel()[near] / bones.grid.spacing_mm
    part = bones.part.ravel()[near]
    whole = np.clip(inward + 0.5, 0, 1)
    core = np.clip(inward - shell[part] / bones.grid.spacing_mm + 0.5, 0, 1)
    mean = density_mg_cm3 if isinstance(density_mg_cm3, float) else density_mg_cm3.ravel()[near]
    marrow = np.where(part == Part.BODY, mean, mean * share[part])
    core_hu = spec.sigma_hu_per_mg * marrow + spec.beta_hu
    out = soft_hu.ravel().copy()
    out[near] = (1 - whole) * out[near] + (whole - core) * spec.cortex_hu + core * core_hu
    return np.asarray(out.reshape(soft_hu.shape), dtype=np.float32)


def paint_torso(torso: Torso, spec: TissueSpec, mean_density_mg_cm3: float) -> tuple[Field, Field]:
    """HU on the coarse and on the fine grid."""
    table = tissue_table(spec)
    rng = np.random.default_rng([spec.seed, 23])
    coarse_soft = table[torso.organs.tissue]
    lung = torso.organs.tissue == Tissue.LUNG
    coarse_soft[lung] += np.abs(rng.normal(0, 60, int(lung.sum()))).astype(np.float32) - 35
    stool = torso.organs.tissue == Tissue.STOOL
    coarse_soft[stool] += rng.normal(-40, 90, int(stool.sum())).astype(np.float32)
    coarse = paint_bone(coarse_soft, torso.bones, spec, mean_density_mg_cm3)
    z, y, x = (slice(c, c + n // 2) for c, n in zip(torso.corner, torso.spine.grid.shape, strict=True))
    fine_soft = table[torso.spine_tissue]
    lung_fine = torso.spine_tissue == Tissue.LUNG
    fine_soft[lung_fine] = coarse_soft[z, y, x].repeat(2, 0).repeat(2, 1).repeat(2, 2)[lung_fine]
    density = np.where(torso.spine.part == Part.BODY, torso.density_mg_cm3, np.float32(mean_density_mg_cm3))
    fine = paint_bone(fine_soft, torso.spine, spec, density)
    np.copyto(fine, torso.special_hu, where=np.isfinite(torso.special_hu))
    return coarse, fine


def add_table(coarse_hu: Field, torso: Torso) -> None:
    """A mattress and a carbon-fibre table top (2-mm shells round foam) under the body, in the scanner's frame."""
    grid = torso.organs.grid
    body_rows = np.flatnonzero((torso.organs.tissue > 0).any(axis=(0, 2)))
    top = grid.axis_mm(1)[body_rows[-1]] + 1.0
    x, y = grid.axis_mm(2)[None, :], grid.axis_mm(1)[:, None]
    depth = y - top + 0.00035 * (x - x.mean()) ** 2
    table = np.full(depth.shape, -1000.0, np.float32)
    for low, high, hu in ((0, 7, -890), (7, 9.5, -60), (9.5, 24, -930), (24, 26.5, -60)):
        share = np.clip((depth - low) / grid.spacing_mm + 0.5, 0, 1) * np.clip((high - depth) / grid.spacing_mm + 0.5, 0, 1)
        table += (share * (hu + 1000)).astype(np.float32)
    np.copyto(coarse_hu, table[None], where=torso.organs.tissue == Tissue.AIR)


# --- from the label grids to the scanner's grid ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class OutputGrid:
    """Positions (LPS mm) of the CT's voxel centres along z, y, x."""

    z_mm: NDArray[np.float64]
    y_mm: NDArray[np.float64]
    x_mm: NDArray[np.float64]

    @property
    def axes_mm(self) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        return self.z_mm, self.y_mm, self.x_mm

    @property
    def shape(self) -> tuple[int, int, int]:
        return len(self.z_mm), len(self.y_mm), len(self.x_mm)


def spread_matrix(target_mm: NDArray[np.float64], source_mm: NDArray[np.float64], box_mm: float,
                  kernel: KernelShape) -> NDArray[np.float32]:
    """Weights (target, source): point spread convolved with the detector or slice box, at each target position.

    Rows sum to one where the source covers the spread; outside the source the quantity counts as zero.
    """
    step = float(source_mm[1] - source_mm[0])
    gap = target_mm[:, None] - source_mm[None, :]

    def spread(sigma_mm: float) -> NDArray[np.float64]:
        scale = np.sqrt(2) * max(sigma_mm, 0.5 * step)
        half = max(box_mm, 0.2 * step) / 2
        return np.asarray((erf((gap + half) / scale) - erf((gap - half) / scale)) * step / (4 * half))

    weights = spread(kernel.sigma_mm)
    if kernel.overshoot:
        weights = (1 + kernel.overshoot) * weights - kernel.overshoot * spread(_LOBE_RATIO * kernel.sigma_mm)
    return weights.astype(np.float32)


def spread_volume(values: Field, grid: Grid, out: OutputGrid, boxes_mm: tuple[float, float, float],
                  kernel: KernelShape) -> tuple[Field, tuple[slice, slice, slice]]:
    """Resample with blur onto the part of the output that the grid can reach; returns that part and where it lies."""
    slicing_kernel = KernelShape(0.25, 0.0, kernel.noise_cutoff_per_mm)
    matrices, windows = [], []
    for axis in range(3):
        source, target = grid.axis_mm(axis), out.axes_mm[axis]
        pad = 4.0 + boxes_mm[axis]
        inside = np.flatnonzero((target > source[0] - pad) & (target < source[-1] + pad))
        windows.append(slice(int(inside[0]), int(inside[-1]) + 1) if len(inside) else slice(0, 0))
        matrices.append(spread_matrix(target[windows[axis]], source, boxes_mm[axis], kernel if axis else slicing_kernel))
    matrices[0] /= np.maximum(matrices[0].sum(axis=1, keepdims=True), 1e-6)      # the body goes on beyond both ends
    along_z = np.tensordot(matrices[0], values, axes=(1, 0))
    result = np.matmul(matrices[1][None], along_z) @ matrices[2].T
    return result.astype(np.float32, copy=False), (windows[0], windows[1], windows[2])


def blend_weights(torso: Torso, taper_mm: float = 10.0) -> Field:
    """Weight of the fine grid in x and y: one inside, falling smoothly to zero at its rim (rows, columns)."""
    ramps = []
    for axis in (1, 2):
        position = np.arange(torso.spine.grid.shape[axis]) * torso.spine.grid.spacing_mm
        low = np.clip(position / taper_mm, 0, 1) if torso.corner[axis] > 0 else np.ones_like(position)
        end = torso.corner[axis] + torso.spine.grid.shape[axis] // 2
        high = np.clip((position[-1] - position) / taper_mm, 0, 1) if end < torso.organs.grid.shape[axis] else 1.0
        ramps.append(np.sin(np.pi / 2 * np.minimum(low, high)) ** 2)
    return np.outer(ramps[0], ramps[1]).astype(np.float32)


def project(torso: Torso, coarse_hu: Field, fine_hu: Field, out: OutputGrid, acquisition: AcquisitionSpec) -> Field:
    """The noise-free CT, HU: both grids blended, blurred and sampled."""
    weight = blend_weights(torso)
    z, y, x = (slice(c, c + n // 2) for c, n in zip(torso.corner, torso.spine.grid.shape, strict=True))
    fine = fine_hu * weight
    coarse = coarse_hu.copy()
    ny, nx = weight.shape
    coarse[z, y, x] *= 1 - weight.reshape(ny // 2, 2, nx // 2, 2).mean(axis=(1, 3))
    coarse += 1000
    boxes = (acquisition.slice_thickness_mm, acquisition.pixel_spacing_mm, acquisition.pixel_spacing_mm)
    kernel = KERNELS[acquisition.kernel]
    result = np.zeros(out.shape, np.float32)
    for values, grid in ((coarse, torso.organs.grid), (fine, torso.spine.grid)):
        part, window = spread_volume(values, grid, out, boxes, kernel)
        result[window] += part
    result -= 1000
    return result


# --- noise and artefacts ---------------------------------------------------------------------------------------------


def add_noise(hu: Field, acquisition: AcquisitionSpec, spine_lps_mm: tuple[float, float], out: OutputGrid) -> None:
    """Correlated noise in place; the given SD holds at the spine, a third less near the skin and half in air."""
    if acquisition.noise_sd_hu <= 0:
        return
    rng = np.random.default_rng([acquisition.seed, 31])
    filter_ = _noise_filter(hu.shape[1:], acquisition)
    memory = float(np.clip(0.42 * acquisition.slice_thickness_mm / acquisition.slice_interval_mm, 0, 0.85))
    radius2 = (out.x_mm[None, :] - spine_lps_mm[0]) ** 2 + (out.y_mm[:, None] - spine_lps_mm[1]) ** 2
    strength = (acquisition.noise_sd_hu * (0.62 + 0.38 * np.exp(-radius2 / (2 * 85.0**2)))).astype(np.float32)
    field = np.zeros(hu.shape[1:], np.float32)
    for k in range(hu.shape[0]):
        white = rng.standard_normal(hu.shape[1:], dtype=np.float32)
        fresh = fft.irfft2(fft.rfft2(white) * filter_, s=hu.shape[1:])
        field = fresh if k == 0 else memory * field + np.float32(np.sqrt(1 - memory**2)) * fresh
        hu[k] += field * strength


def _noise_filter(shape: tuple[int, ...], acquisition: AcquisitionSpec) -> NDArray[np.float32]:
    """Amplitude filter of unit output variance."""
    fy = np.fft.fftfreq(shape[0], acquisition.pixel_spacing_mm)[:, None]
    fx = np.fft.rfftfreq(shape[1], acquisition.pixel_spacing_mm)[None, :]
    f = np.hypot(fx, fy)
    amplitude = np.sqrt((f + 0.03) * np.exp(-((f / KERNELS[acquisition.kernel].noise_cutoff_per_mm) ** 2)))
    both = np.ones(amplitude.shape[1])
    both[1: (shape[1] + 1) // 2] = 2
    power = float((amplitude**2 * both).sum()) / (shape[0] * shape[1])
    return (amplitude / np.sqrt(power)).astype(np.float32)


def add_artefacts(hu: Field, acquisition: AcquisitionSpec, spine_lps_mm: tuple[float, float], out: OutputGrid) -> None:
    """Cupping and streaks round metal, in place."""
    if acquisition.cupping_hu:
        radius2 = (out.x_mm[None, :] - spine_lps_mm[0]) ** 2 / 150.0**2 + (out.y_mm[:, None] - spine_lps_mm[1]) ** 2 / 110.0**2
        hu -= np.where(hu > -400, (acquisition.cupping_hu * np.exp(-radius2)).astype(np.float32)[None], np.float32(0))
    if acquisition.streak_hu:
        for k in np.flatnonzero((hu > 2600).any(axis=(1, 2))):
            _add_streaks(hu[k], acquisition, out, int(k))


def _add_streaks(section: Field, acquisition: AcquisitionSpec, out: OutputGrid, k: int) -> None:
    rows, columns = np.nonzero(section > 2600)
    y, x = out.y_mm[rows].mean(), out.x_mm[columns].mean()
    angle = np.arctan2(out.y_mm[:, None] - y, out.x_mm[None, :] - x)
    radius = np.hypot(out.y_mm[:, None] - y, out.x_mm[None, :] - x)
    rng = np.random.default_rng([acquisition.seed, 41, k // 3])
    rays = sum(rng.normal() * np.cos(2 * m * angle + rng.uniform(0, 6.3)) for m in range(1, 14)) / 2.5
    section += (acquisition.streak_hu * rays * np.exp(-radius / 45.0)).astype(np.float32) * (section < 2600)


def pad_outside_circle(hu: Field, acquisition: AcquisitionSpec) -> None:
    """Fill what lies outside the reconstruction circle."""
    y, x = (np.arange(n) - (n - 1) / 2 for n in hu.shape[1:])
    hu[:, np.hypot(y[:, None], x[None, :]) > max(hu.shape[1:]) / 2] = acquisition.padding_hu
