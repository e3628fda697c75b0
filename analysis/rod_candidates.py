"""Circles in a cross-section: where could a rod be?

A slab of slices is averaged and the direction of its smoothed gradient is correlated with rings of every radius. A
disc of uniform material makes the gradient point along the radius all around, whatever its contrast or background
("radial symmetry", Loy and Zelinsky 2003, here on whole rings). The gradient is normalised, so that the strong edge
between pad and air counts no more than the weak edge of a rod of 35 HU contrast.

In-plane positions are (row, column) in millimetres from the centre of the first voxel.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage

GRID_MM = 1.5
SMOOTHING_MM = 1.5
RING_WIDTH_MM = 1.0
# Rods of 11 to 28 mm diameter; published phantoms have 18 to 20 mm
RADII_MM = tuple(float(r) for r in np.arange(5.5, 14.1, 0.75))
# The edge between air and pad is cut here, so that it does not drown a rod that lies 2 mm below it
LOWEST_HU, HIGHEST_HU = -250.0, 1500.0
STRONG_SCORE, WEAK_SCORE = 0.33, 0.18
MOST_CANDIDATES = 70


@dataclass(frozen=True, slots=True, eq=False)
class Section:
    """The average of a slab of slices.

    hu : float32, (rows, columns), full resolution
    pixel_mm : row and column spacing
    centre_mm : position of the slab's middle along the slices, from the first slice
    """

    hu: NDArray[np.float32]
    pixel_mm: tuple[float, float]
    centre_mm: float


@dataclass(frozen=True, slots=True)
class Circle:
    """A candidate; `score` is the share of the circumference whose gradient is radial, > 0 for a bright disc."""

    row_mm: float
    column_mm: float
    radius_mm: float
    score: float

    @property
    def position_mm(self) -> NDArray[np.float64]:
        return np.array([self.row_mm, self.column_mm])


def section(hu: NDArray[np.float32], spacing_mm: tuple[float, float, float], slices: slice) -> Section:
    """Average the slab `slices` of a (slices, rows, columns) volume."""
    middle = 0.5 * (slices.start + slices.stop - 1) * spacing_mm[0]
    return Section(hu[slices].mean(axis=0, dtype=np.float32), (spacing_mm[1], spacing_mm[2]), middle)


def pixels_around(
    image: NDArray[np.float32], pixel_mm: tuple[float, float], centre_mm: NDArray[np.float64], radius_mm: float
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """The box of pixels around a disc: HU, and squared distance of their centres from the disc's, mm2."""
    box = tuple(
        slice(max(int(np.ceil((c - radius_mm) / p)), 0), max(int(np.floor((c + radius_mm) / p)) + 1, 0))
        for c, p in zip(centre_mm, pixel_mm, strict=True)
    )
    rows, columns = (np.arange(n)[part] for n, part in zip(image.shape, box, strict=True))
    squared = (rows[:, None] * pixel_mm[0] - centre_mm[0]) ** 2 + (columns[None, :] * pixel_mm[1] - centre_mm[1]) ** 2
    return image[box], squared


def find_circles(image: Section) -> tuple[Circle, ...]:
    """Bright and dark discs, best first."""
    direction = _gradient_direction(_on_grid(image))
    scores = ring_scores(direction)
    strength = np.abs(scores)
    peaks = (strength == ndimage.maximum_filter(strength, size=(3, 7, 7))) & (strength > WEAK_SCORE)
    found = np.argwhere(peaks)
    best = found[np.argsort(-strength[peaks])][:MOST_CANDIDATES]
    return tuple(
        Circle(float(r) * GRID_MM, float(c) * GRID_MM, RADII_MM[k], float(scores[k, r, c])) for k, r, c in best
    )


def _on_grid(image: Section) -> NDArray[np.float32]:
    clipped = np.clip(image.hu, LOWEST_HU, HIGHEST_HU)
    rows_mm, columns_mm = image.pixel_mm
    smooth = ndimage.gaussian_filter(clipped, (SMOOTHING_MM / rows_mm, SMOOTHING_MM / columns_mm), truncate=3.0)
    shape = [int((n - 1) * pixel / GRID_MM) + 1 for n, pixel in zip(smooth.shape, image.pixel_mm, strict=True)]
    rows = np.arange(shape[0], dtype=np.float64) * (GRID_MM / rows_mm)
    columns = np.arange(shape[1], dtype=np.float64) * (GRID_MM / columns_mm)
    return _bilinear(smooth, rows, columns)


def _bilinear(
    image: NDArray[np.float32], rows: NDArray[np.float64], columns: NDArray[np.float64]
) -> NDArray[np.float32]:
    r0 = np.minimum(rows.astype(int), image.shape[0] - 2)
    c0 = np.minimum(columns.astype(int), image.shape[1] - 2)
    fr, fc = (rows - r0)[:, None], (columns - c0)[None, :]
    top = image[r0][:, c0] * (1 - fc) + image[r0][:, c0 + 1] * fc
    bottom = image[r0 + 1][:, c0] * (1 - fc) + image[r0 + 1][:, c0 + 1] * fc
    return np.asarray(top * (1 - fr) + bottom * fr, dtype=np.float32)


def _gradient_direction(image: NDArray[np.float32]) -> NDArray[np.float32]:
    """Gradient over (its length + noise level), (2, rows, columns); the noise level is measured in the image."""
    rows, columns = np.gradient(image, GRID_MM)
    length = np.hypot(rows, columns)
    inside = length[image > LOWEST_HU + 50.0]
    noise = float(np.median(inside)) if inside.size else 1.0
    direction = np.stack([rows, columns]) / (length + float(np.clip(2.0 * noise, 1.0, 6.0)))
    return np.asarray(direction, dtype=np.float32)


def ring_peak(image: Section, near_mm: NDArray[np.float64], radius_mm: float, reach_mm: float) -> Circle:
    """The best circle of known radius within `reach_mm` of a position; nearer ones are preferred a little."""
    scores = ring_scores(_gradient_direction(_on_grid(image)), (radius_mm,))[0]
    rows, columns = (np.arange(n) * GRID_MM for n in scores.shape)
    distance = np.hypot(rows[:, None] - near_mm[0], columns[None, :] - near_mm[1])
    merit = np.where(distance <= reach_mm, np.abs(scores) * (1.0 - 0.6 * (distance / reach_mm) ** 2), -1.0)
    r, c = np.unravel_index(int(merit.argmax()), merit.shape)
    return Circle(float(rows[r]), float(columns[c]), radius_mm, float(scores[r, c]))


def ring_scores(direction: NDArray[np.float32], radii_mm: tuple[float, ...] = RADII_MM) -> NDArray[np.float32]:
    """Minus the mean radial component of the gradient direction on rings, (radii, rows, columns), -1..1."""
    shape = [fft.next_fast_len(n + 24, real=True) for n in direction.shape[1:]]
    transform = fft.rfft2(direction, shape)
    rows, columns = direction.shape[1:]
    scores = np.empty((len(radii_mm), rows, columns), np.float32)
    for k, radius_mm in enumerate(radii_mm):
        kernel = fft.rfft2(_ring_kernel(radius_mm, shape))
        product = (transform * np.conj(kernel)).sum(axis=0)
        scores[k] = -fft.irfft2(product, shape)[:rows, :columns]
    return scores


def _ring_kernel(radius_mm: float, shape: list[int]) -> NDArray[np.float32]:
    """Outward unit vectors on a ring, weights summing to one, centred on index (0, 0) with wrap-around."""
    rows = fft.fftfreq(shape[0], 1.0 / shape[0])[:, None] * GRID_MM
    columns = fft.fftfreq(shape[1], 1.0 / shape[1])[None, :] * GRID_MM
    distance = np.hypot(rows, columns)
    weight = np.exp(-0.5 * ((distance - radius_mm) / RING_WIDTH_MM) ** 2)
    weight /= weight.sum()
    safe = np.maximum(distance, 1e-6)
    return np.stack([weight * rows / safe, weight * columns / safe]).astype(np.float32)
