"""Spines for the tests of VOI and BMD: from label maps, from the simulator, and a plain analytic spine.

The analytic spine is a stack of elliptical bodies with a 1.2-mm cortex, posterior arch, basivertebral vein and lordotic
tilt, sampled on any grid; it is fast, and everything in it is known.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from analysis.results import (
    Calibration,
    CalibrationKey,
    CalibrationLine,
    ChosenCalibration,
    Material,
    PhantomMeasurement,
    PhantomSetup,
    Segmentation,
    VertebraLevel,
)
from analysis.volume import CtVolume, axial_affine

NAMES = {**{label: f"T{label - 7}" for label in range(8, 20)}, **{label: f"L{label - 19}" for label in range(20, 25)}}
SIGMA, BETA = 1.25, -10.0  # of the simulated line, HU per mg/cm3 and HU


def segmentation_from_maps(
    volume: CtVolume, labels: NDArray[np.uint8], body: NDArray[np.uint8], incomplete: Iterable[str] = ()
) -> Segmentation:
    """A Segmentation with the centroids of the bodies, as a perfect network would return it."""
    levels = []
    for label, box in enumerate(ndimage.find_objects(labels), start=1):
        if box is None or label not in NAMES:
            continue
        bodies = (labels[box] == label) & (body[box] >= 2)
        if bodies.any():
            index = np.argwhere(bodies).mean(axis=0) + [part.start for part in box]
            centre = volume.to_lps_mm(index)
            name = NAMES[label]
            place = (float(centre[0]), float(centre[1]), float(centre[2]))
            levels.append(VertebraLevel(name, label, 1.0, place, name not in incomplete))
    return Segmentation(labels, body, tuple(levels), ("last rib", "sacrum"), ())


@dataclass(frozen=True, slots=True)
class SpineShape:
    """The analytic spine. Densities by level name, mg/cm3; angles of each body about the left-right axis."""

    densities_mg_cm3: tuple[tuple[str, float], ...] = (("T12", 130.0), ("L1", 120.0), ("L2", 110.0), ("L3", 105.0))
    tilts_deg: tuple[float, ...] = (8.0, 3.0, -4.0, -9.0)
    side_bend_deg: float = 0.0
    half_width_mm: float = 21.0
    half_depth_mm: float = 15.5
    height_mm: float = 27.0
    wedge: float = 1.0  # anterior / posterior height of L1
    crush: float = 1.0  # height of L1 / its neighbours
    cortex_mm: float = 1.2
    texture_sd_mg_cm3: float = 0.0
    noise_sd_hu: float = 0.0
    vein: bool = True
    island_radius_mm: float = 0.0  # in the middle of L1
    inside_hu: float | None = None  # replaces a 20-mm ball in L1 (cement, metal, lesion)
    soft_tissue_hu: float = 50.0
    shift_mm: tuple[float, float, float] = (0.0, 0.0, 0.0)
    seed: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class BuiltSpine:
    """An analytic spine on a grid. density_mg_cm3 : the truth without vein and islands, 0 outside cancellous bone."""

    volume: CtVolume
    segmentation: Segmentation
    density_mg_cm3: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class SpineGrid:
    """The sampling grid; `flip` turns rows, columns and slices around, `oblique_deg` turns the grid about x."""

    spacing_mm: tuple[float, float, float] = (1.25, 0.8, 0.8)
    extent_mm: tuple[float, float, float] = (150.0, 110.0, 110.0)
    flip: bool = False
    oblique_deg: float = 0.0


def build_spine(shape: SpineShape | None = None, grid: SpineGrid | None = None) -> BuiltSpine:
    """Paint the spine with 2 x 2 x 2 samples per voxel."""
    shape, grid = shape or SpineShape(), grid or SpineGrid()
    affine, size = _grid_affine(grid)
    hu = np.zeros(size, dtype=np.float32)
    votes = np.zeros((4, *size), dtype=np.int8)
    density = np.zeros(size, dtype=np.float32)
    labels = np.zeros(size, dtype=np.uint8)
    texture = _texture(shape, size, grid)
    for offset in np.array(np.meshgrid(*[(-0.25, 0.25)] * 3)).reshape(3, -1).T:
        index = np.stack(np.meshgrid(*[np.arange(n) + o for n, o in zip(size, offset, strict=True)], indexing="ij"), -1)
        points = index @ affine[:3, :3].T + affine[:3, 3] - np.array(shape.shift_mm)
        sample, part, label, truth = _paint(points, shape)
        hu += (sample + np.where(part == 3, texture * SIGMA, 0.0)) / 8
        for kind in (1, 2, 3):
            votes[kind] += part == kind
        density += np.where(part == 3, truth + texture, 0.0) / 8
        labels = np.maximum(labels, label)
    votes[0] = 8 - votes[1:].sum(axis=0)
    body = _winner(votes)
    density = np.where(votes[3] > 0, density * 8 / np.maximum(votes[3], 1), 0.0).astype(np.float32)
    rng = np.random.default_rng(shape.seed)
    hu = hu + rng.normal(0.0, shape.noise_sd_hu, size).astype(np.float32) if shape.noise_sd_hu else hu
    volume = CtVolume(hu.astype(np.float32), affine)
    labels = np.where(body > 0, labels, 0).astype(np.uint8)
    return BuiltSpine(volume, segmentation_from_maps(volume, labels, body), density)


def _winner(votes: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Bone wins where it fills at least half of the voxel; then the part that fills most."""
    part = 1 + np.argmax(votes[1:], axis=0)
    return np.where(votes[1:].sum(axis=0) >= 4, part, 0).astype(np.uint8)


def _grid_affine(grid: SpineGrid) -> tuple[NDArray[np.float64], tuple[int, int, int]]:
    size = tuple(int(round(mm / step)) for mm, step in zip(grid.extent_mm, grid.spacing_mm, strict=True))
    affine = axial_affine(
        grid.spacing_mm, (-grid.extent_mm[2] / 2, -grid.extent_mm[1] / 2 + 12, -grid.extent_mm[0] / 2)
    )
    if grid.flip:
        affine[:3, 3] += affine[:3, :3] @ (np.array(size) - 1)
        affine[:3, :3] *= -1
    angle = np.deg2rad(grid.oblique_deg)
    turn = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
    affine[:3] = turn @ affine[:3]
    return affine, size  # type: ignore[return-value]


def _texture(shape: SpineShape, size: tuple[int, int, int], grid: SpineGrid) -> NDArray[np.float32]:
    """Correlated texture with a sigma of 1 mm and unit-scaled to the wanted standard deviation."""
    if not shape.texture_sd_mg_cm3:
        return np.zeros(size, dtype=np.float32)
    noise = np.random.default_rng(shape.seed + 1).normal(size=size).astype(np.float32)
    smooth = ndimage.gaussian_filter(noise, [1.0 / mm for mm in grid.spacing_mm])
    scaled: NDArray[np.float32] = smooth / smooth.std() * shape.texture_sd_mg_cm3
    return scaled


def frames_of(shape: SpineShape) -> list[tuple[str, int, NDArray[np.float64], NDArray[np.float64]]]:
    """(name, label, centre, rotation whose columns are axis, forward, lateral) of each body, from head to feet."""
    frames = []
    count = len(shape.densities_mg_cm3)
    for position, (name, _) in enumerate(shape.densities_mg_cm3):
        tilt, bend = np.deg2rad(shape.tilts_deg[position]), np.deg2rad(shape.side_bend_deg)
        z = ((count - 1) / 2 - position) * (shape.height_mm + 9.0)
        axis = np.array([np.sin(bend), -np.sin(tilt) * np.cos(bend), np.cos(tilt) * np.cos(bend)])
        forward = np.array([0.0, -1.0, 0.0]) - axis * -axis[1]
        forward /= np.linalg.norm(forward)
        rotation = np.stack([axis, forward, np.cross(axis, forward)], axis=1)
        label = next(label for label, other in NAMES.items() if other == name)
        frames.append((name, label, np.array([z * np.tan(bend), 0.0, z]), rotation))
    return frames


def _paint(
    points: NDArray[np.float64], shape: SpineShape
) -> tuple[NDArray[np.float64], NDArray[np.int8], NDArray[np.uint8], NDArray[np.float64]]:
    """HU, body part, label and density at points."""
    hu = np.full(points.shape[:-1], shape.soft_tissue_hu)
    part = np.zeros(points.shape[:-1], dtype=np.int8)
    label = np.zeros(points.shape[:-1], dtype=np.uint8)
    truth = np.zeros(points.shape[:-1])
    for (name, number, centre, rotation), (_, density) in zip(frames_of(shape), shape.densities_mg_cm3, strict=True):
        near = np.abs((points - centre) @ rotation[:, 0]) < shape.height_mm * 0.75
        w, v, u = ((points[near] - centre) @ rotation).T
        own_hu, own_part, own_truth = _paint_one((w, v, u), density, shape, special=name == "L1")
        bone = own_part > 0
        hu[near] = np.where(bone, own_hu, hu[near])
        part[near] = np.where(bone, own_part, part[near])
        label[near] = np.where(bone, number, label[near])
        truth[near] = np.where(bone, own_truth, truth[near])
    return hu, part, label, truth


def _paint_one(
    local: tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]],
    density: float,
    shape: SpineShape,
    *,
    special: bool,
) -> tuple[NDArray[np.float64], NDArray[np.int8], NDArray[np.float64]]:
    """HU, part (0 outside) and density of one vertebra at points in its own frame; L1 is the special one."""
    w, v, u = local
    height = shape.height_mm * (shape.crush if special else 1.0)
    loss = (1 - shape.wedge) / 2 if special else 0.0
    half = height / 2 * (1 - loss - loss * v / shape.half_depth_mm)
    radial = np.hypot(u / shape.half_width_mm, v / shape.half_depth_mm)
    depth = np.minimum(half - np.abs(w), (1 - radial) * shape.half_depth_mm)
    cancellous = depth > shape.cortex_mm
    vein = shape.vein & (v < -0.4 * shape.half_depth_mm) & (np.hypot(w, u * 0.6) < 2.0)
    value = np.where(cancellous, np.where(vein, 20.0, SIGMA * density + BETA), 700.0)
    if special and shape.island_radius_mm:
        value = np.where(np.hypot(np.hypot(w, v - 3.0), u - 4.0) < shape.island_radius_mm, 800.0, value)
    if special and shape.inside_hu is not None:
        value = np.where(np.hypot(np.hypot(w, v), u) < 10.0, shape.inside_hu, value)
    arch = _arch(w, v, u, shape)
    part = np.where(depth > 0, np.where(cancellous, 3, 2), arch).astype(np.int8)
    return np.where(depth > 0, value, 400.0), part, np.where(cancellous, density, 0.0)


def _arch(
    w: NDArray[np.float64], v: NDArray[np.float64], u: NDArray[np.float64], shape: SpineShape
) -> NDArray[np.bool_]:
    """Pedicles, lamina around a round canal, transverse and spinous processes."""
    rear = -shape.half_depth_mm
    pedicle = (np.abs(np.abs(u) - 12.0) < 4.0) & (np.abs(w - 5.0) < 6.0) & (v < rear + 7.0) & (v > rear - 12.0)
    ring = np.hypot(u, v - (rear - 9.0))
    lamina = (ring > 9.5) & (ring < 15.0) & (v < rear - 9.0) & (np.abs(w) < 9.0)
    transverse = (np.abs(w - 5.0) < 4.0) & (np.abs(v - (rear - 9.0)) < 4.0) & (np.abs(u) > 12.0) & (np.abs(u) < 38.0)
    spinous = (np.abs(u) < 3.0) & (v < rear - 20.0) & (v > rear - 42.0) & (np.abs(w + 3.0) < 8.0)
    return np.asarray(pedicle | lamina | transverse | spinous)


def ragged(segmentation: Segmentation, volume: CtVolume, seed: int) -> Segmentation:
    """The same segmentation with edges that wander by one to two voxels and a cortex class of uncertain thickness."""
    rng = np.random.default_rng(seed)

    def wobble(mask: NDArray[np.bool_], amplitude: float) -> NDArray[np.bool_]:
        distance = ndimage.distance_transform_edt(mask) - ndimage.distance_transform_edt(~mask)
        noise = ndimage.gaussian_filter(rng.normal(size=mask.shape), 1.5)
        moved: NDArray[np.bool_] = distance + amplitude * noise / noise.std() > 0
        return moved

    bodies = wobble(segmentation.body >= 2, 1.0)
    inner = wobble(segmentation.body == 3, 1.0) & bodies
    posterior = wobble(segmentation.body == 1, 0.7) & ~bodies
    body = np.where(inner, 3, np.where(bodies, 2, np.where(posterior, 1, 0))).astype(np.uint8)
    nearest = ndimage.distance_transform_edt(segmentation.labels == 0, return_distances=False, return_indices=True)
    labels = np.where(body > 0, segmentation.labels[tuple(nearest)], 0).astype(np.uint8)
    return segmentation_from_maps(volume, labels, body)


@dataclass(frozen=True, slots=True)
class LineSpec:
    """The line of `chosen_calibration` and its covariance (the golden vector's size of uncertainty)."""

    sigma: float = SIGMA
    beta: float = BETA
    material: Material = Material.K2HPO4
    covariance: tuple[tuple[float, float], tuple[float, float]] = ((0.00021, -0.025), (-0.025, 7.3))
    diameter_mm: float = 280.0
    setups: tuple[tuple[float, float], ...] = field(default=())  # further (diameter, sigma)


def chosen_calibration(spec: LineSpec | None = None) -> ChosenCalibration:
    """A calibration in normal state with a given line."""
    spec = spec or LineSpec()
    line = calibration_line(spec, spec.sigma)
    acquired = datetime(2026, 1, 5, 8, 0, tzinfo=UTC)
    key = CalibrationKey("M", "S", "1", "1", 120.0, "BODY", "STANDARD", "P1", PhantomSetup.TORSO)
    measurement = PhantomMeasurement("P1", (), PhantomSetup.TORSO, 0.0, spec.diameter_mm, 10.0)
    calibration = Calibration("c1", "1.2.3", "P1", "test", key, acquired, line, measurement, (), True, (), "0")
    setups = tuple((diameter, calibration_line(spec, sigma)) for diameter, sigma in spec.setups)
    return ChosenCalibration(calibration, line, 1.0, "normal", True, None, 0.0, setups)


def calibration_line(spec: LineSpec, sigma: float) -> CalibrationLine:
    return CalibrationLine(
        spec.material, sigma + 0.2174, spec.beta - 999.6, sigma, spec.beta, spec.covariance, 0.9997, 5.2, (0.0,) * 5, 3
    )
