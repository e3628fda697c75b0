"""The scanner: protocol, point spread, slice profile, sampling, noise, artefacts.

Blur: Gaussian in-plane point spread (soft kernels MTF50 about 0.3-0.45 /mm, sharp 0.6-1.0 /mm with overshoot) and a
box along the slice normal. Noise: power spectrum f * exp(-(f/fc)^2), the form of filtered back-projection with an
apodised ramp (Riederer 1978), correlated between slices.
"""

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray
from scipy import fft, sparse
from scipy.special import erf

from analysis.simulation.shapes import Field, Grid
from analysis.simulation.torso import Torso


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
_SMALLEST_WEIGHT = 1e-6          # of a point spread; what lies farther out counts as zero


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
        shape = kernel if axis else slicing_kernel
        matrices.append(spread_matrix(target[windows[axis]], source, boxes_mm[axis], shape))
    matrices[0] /= np.maximum(matrices[0].sum(axis=1, keepdims=True), 1e-6)      # the body goes on beyond both ends
    return _apply(matrices, values), (windows[0], windows[1], windows[2])


def _apply(matrices: list[NDArray[np.float32]], values: Field) -> Field:
    """One matrix along each axis. All but a narrow band of each is zero: sparse ones take a fraction of the time."""
    z, y, x = (sparse.csr_array(np.where(np.abs(m) > _SMALLEST_WEIGHT, m, 0)) for m in matrices)
    along_z = (z @ values.reshape(len(values), -1)).reshape(-1, *values.shape[1:])
    result = np.empty((len(along_z), y.shape[0], x.shape[0]), np.float32)
    for k, section in enumerate(along_z):
        result[k] = (x @ (y @ section).T).T
    return result


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
    return np.asarray(amplitude / np.sqrt(power), dtype=np.float32)


def add_artefacts(hu: Field, acquisition: AcquisitionSpec, spine_lps_mm: tuple[float, float], out: OutputGrid) -> None:
    """Cupping and streaks round metal, in place."""
    if acquisition.cupping_hu:
        x, y = out.x_mm[None, :] - spine_lps_mm[0], out.y_mm[:, None] - spine_lps_mm[1]
        radius2 = (x / 150.0) ** 2 + (y / 110.0) ** 2
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
