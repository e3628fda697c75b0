"""Where each vertebra stands: sizes by level, lordosis, kyphosis, scoliosis, transitional variants.

Sizes: Panjabi et al. 1991/1992 (means over both sexes; in between interpolated), L5 by sex on CT, male = female x 1.10
(width, depth) and x 1.05 (height). Discs, lordosis, kyphosis and sacral slope: usual clinical means. Patient frame: x
to the left, y to the back, z to the head; the origin is the mean of the lumbar centres.
"""

from dataclasses import dataclass, field, replace
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from analysis.simulation.shapes import Field, Frame, along_z

VERSE_LABELS = {**{f"C{k}": k for k in range(1, 8)}, **{f"T{k}": 7 + k for k in range(1, 13)},
                **{f"L{k}": 19 + k for k in range(1, 7)}, "S": 26, "T13": 28}
# position on a continuous level scale: T1 = 1 ... T12 = 12, L1 = 13 ... L5 = 17, S1 = 18
_KNOTS = np.array([1, 4, 6, 8, 10, 12, 13, 14, 15, 16, 17], dtype=float)
_WIDTH_MM = np.array([26.0, 25.5, 27.5, 30.5, 34, 39.5, 41, 42.6, 44, 46.6, 48.5])
_DEPTH_MM = np.array([18.5, 23, 26, 28.5, 31, 33, 34, 34.5, 34.7, 35, 35])
_POSTERIOR_HEIGHT_MM = np.array([14.8, 16.5, 17.8, 19, 20.8, 23.2, 24.4, 25, 25, 25, 24])
_ANTERIOR_RATIO = np.array([0.97, 0.95, 0.94, 0.94, 0.95, 0.95, 0.97, 1.0, 1.04, 1.07, 1.15])
_CANAL_WIDTH_MM = np.array([21, 17.5, 17.3, 17.5, 18, 22.2, 23.7, 23.8, 24.3, 25.4, 27.1])
_CANAL_DEPTH_MM = np.array([16.4, 16.2, 16.3, 16, 16, 18.1, 19, 18.2, 17.5, 18.6, 19.7])
_PEDICLE_WIDTH_MM = np.array([8.5, 5.2, 5.5, 6.5, 7.5, 8.6, 8.6, 8.4, 10.2, 14.1, 18])
_PEDICLE_HEIGHT_MM = np.array([9.6, 11, 11.5, 12.5, 14.5, 16.5, 15.9, 15, 14.4, 15.5, 14])
_TRANSVERSE_SPAN_MM = np.array([75, 64, 62, 60, 58, 47, 71, 76, 86, 79, 92], dtype=float)
_SPINOUS_LENGTH_MM = np.array([32, 34, 38, 40, 34, 28, 30, 31, 31, 28, 22], dtype=float)
_SPINOUS_SLOPE_DEG = np.array([30, 48, 60, 62, 45, 15, 10, 8, 8, 8, 12], dtype=float)
_DISC_BELOW_MM = np.array([3.5, 4, 4.3, 4.8, 5.5, 7, 8, 9.5, 10.5, 11.5, 10.5])
# share of the lordosis that lies between S1 and the middle of the level
_LORDOSIS_SHARE = {17.0: 0.42, 16.0: 0.65, 15.0: 0.82, 14.0: 0.93, 13.0: 1.0}


class Variant(StrEnum):
    """Number of rib-bearing and lumbar vertebrae."""

    USUAL = "usual"
    THIRTEEN_RIBS = "thirteen ribs"              # T13 with ribs, then L1-L5
    SIX_LUMBAR = "six lumbar"                    # L6 between L5 and the sacrum
    FOUR_LUMBAR = "four lumbar"                  # L5 is part of the sacrum


class FractureKind(StrEnum):
    """Genant's shapes."""

    WEDGE = "wedge"
    BICONCAVE = "biconcave"
    CRUSH = "crush"


@dataclass(frozen=True, slots=True)
class Fracture:
    """`loss` is the fraction of height lost where the shape loses it (Genant: 0.20-0.25 grade 1 ... > 0.40 grade 3)."""

    level: str
    kind: FractureKind
    loss: float


@dataclass(frozen=True, slots=True)
class SpineSpec:
    """Posture and build of a spine. `size` scales everything; `bend_deg` > 0 is a scoliosis convex to the left."""

    male: bool = True
    size: float = 1.0
    lordosis_deg: float = 42.0
    kyphosis_deg: float = 30.0
    sacral_slope_deg: float = 36.0
    bend_deg: float = 0.0
    bend_apex: float = 14.0                      # on the level scale
    disc_factor: float = 1.0
    variant: Variant = Variant.USUAL
    level_jitter: tuple[float, ...] = field(default=())  # relative size per level C7..S1; empty: none
    fractures: tuple[Fracture, ...] = ()


@dataclass(frozen=True, slots=True)
class LevelSize:
    """Dimensions of one vertebra, mm."""

    width_mm: float
    depth_mm: float
    posterior_height_mm: float
    anterior_height_mm: float
    middle_loss_mm: float                        # central collapse of the endplates beyond their usual concavity
    canal_width_mm: float
    canal_depth_mm: float
    pedicle_width_mm: float
    pedicle_height_mm: float
    transverse_span_mm: float
    spinous_length_mm: float
    spinous_slope_deg: float
    disc_below_mm: float

    @property
    def height_mm(self) -> float:
        return 0.5 * (self.posterior_height_mm + self.anterior_height_mm)


@dataclass(frozen=True, slots=True, eq=False)
class PlacedVertebra:
    """One level with its place. `position` is on the level scale; `rib` is the number of its rib, 0 without."""

    name: str
    label: int
    position: float
    rib: int
    size: LevelSize
    frame: Frame


def level_names(variant: Variant) -> tuple[str, ...]:
    """C7 down to the sacrum, in order."""
    thoracic = 13 if variant is Variant.THIRTEEN_RIBS else 12
    lumbar = {Variant.SIX_LUMBAR: 6, Variant.FOUR_LUMBAR: 4}.get(variant, 5)
    return ("C7", *(f"T{k}" for k in range(1, thoracic + 1)), *(f"L{k}" for k in range(1, lumbar + 1)), "S")


def _positions(names: tuple[str, ...]) -> dict[str, float]:
    """Level scale of each name; extra or missing levels are spread between L1 = 13 and S1 = 18."""
    thoracic = [n for n in names if n.startswith("T")]
    lumbar = [n for n in names if n.startswith("L")]
    scale = {"C7": 0.0, "S": 18.0} | {n: float(k + 1) * 12.0 / len(thoracic) for k, n in enumerate(thoracic)}
    step = 5.0 / len(lumbar)
    return scale | {n: 18.0 - step * (len(lumbar) - k) for k, n in enumerate(lumbar)}


def _of(table: NDArray[np.float64], position: float) -> float:
    return float(np.interp(position, _KNOTS, table))


def level_size(position: float, spec: SpineSpec, jitter: float = 1.0) -> LevelSize:
    """Dimensions at a place on the level scale. Tables hold the mean of both sexes."""
    wide = spec.size * jitter * (1.05 if spec.male else 0.955)
    high = spec.size * jitter * (1.025 if spec.male else 0.976)
    posterior = _of(_POSTERIOR_HEIGHT_MM, position) * high
    return LevelSize(
        width_mm=_of(_WIDTH_MM, position) * wide,
        depth_mm=_of(_DEPTH_MM, position) * wide,
        posterior_height_mm=posterior,
        anterior_height_mm=posterior * _of(_ANTERIOR_RATIO, position),
        middle_loss_mm=0.0,
        canal_width_mm=_of(_CANAL_WIDTH_MM, position) * spec.size,
        canal_depth_mm=_of(_CANAL_DEPTH_MM, position) * spec.size,
        pedicle_width_mm=_of(_PEDICLE_WIDTH_MM, position) * wide,
        pedicle_height_mm=_of(_PEDICLE_HEIGHT_MM, position) * high,
        transverse_span_mm=_of(_TRANSVERSE_SPAN_MM, position) * wide,
        spinous_length_mm=_of(_SPINOUS_LENGTH_MM, position) * wide,
        spinous_slope_deg=_of(_SPINOUS_SLOPE_DEG, position),
        disc_below_mm=_of(_DISC_BELOW_MM, position) * spec.disc_factor * high,
    )


def fractured(size: LevelSize, fracture: Fracture | None) -> LevelSize:
    """The same vertebra after a fracture of the given shape and depth."""
    if fracture is None:
        return size
    left = 1.0 - fracture.loss
    if fracture.kind is FractureKind.BICONCAVE:
        return replace(size, middle_loss_mm=fracture.loss * size.height_mm)
    posterior = left if fracture.kind is FractureKind.CRUSH else 1.0
    return replace(size, anterior_height_mm=size.anterior_height_mm * left,
                   posterior_height_mm=size.posterior_height_mm * posterior)


def sagittal_tilt_deg(position: float, spec: SpineSpec) -> float:
    """How far the top of a level leans forward: sacral slope less lordosis, then kyphosis from T12 to T2."""
    knots, tilts = [18.0], [spec.sacral_slope_deg]
    for place, share in _LORDOSIS_SHARE.items():
        knots.append(place)
        tilts.append(spec.sacral_slope_deg - share * spec.lordosis_deg)
    lowest = spec.sacral_slope_deg - spec.lordosis_deg
    for place, share in ((12.0, 0.02), (10.0, 0.2), (7.0, 0.6), (4.0, 1.0), (1.0, 1.1), (0.0, 1.0)):
        knots.append(place)
        tilts.append(lowest + share * spec.kyphosis_deg)
    return float(np.interp(position, knots[::-1], tilts[::-1]))


def _axes(position: float, spec: SpineSpec) -> NDArray[np.float64]:
    """Rows: local left, back, up. Scoliosis is one lateral wave with coupled axial rotation."""
    phase = (position - spec.bend_apex) / 4.0
    lateral = np.radians(spec.bend_deg) * np.sin(np.pi * phase / 2) * np.exp(-0.5 * (phase / 1.2) ** 2) * -1.0
    twist = np.radians(0.5 * spec.bend_deg) * np.exp(-0.5 * phase**2)
    lean = np.radians(sagittal_tilt_deg(position, spec))
    up = np.array([np.sin(lateral), -np.sin(lean) * np.cos(lateral), np.cos(lean) * np.cos(lateral)])
    left = np.array([np.cos(twist), np.sin(twist), 0.0])
    left -= up * (left @ up)
    left /= np.linalg.norm(left)
    return np.array([left, np.cross(up, left), up])


def place_spine(spec: SpineSpec) -> tuple[PlacedVertebra, ...]:
    """C7 to S1 from head to feet, stacked upwards from the sacral endplate."""
    names = level_names(spec.variant)
    scale = _positions(names)
    jitter = dict(zip(names, spec.level_jitter, strict=False))
    broken = {f.level: f for f in spec.fractures}
    placed: list[PlacedVertebra] = []
    cursor, below = np.zeros(3), _axes(18.0, spec)[2]
    for name in reversed(names[:-1]):
        size = fractured(level_size(scale[name], spec, jitter.get(name, 1.0)), broken.get(name))
        axes = _axes(scale[name], spec)
        mean_up = (below + axes[2]) / np.linalg.norm(below + axes[2])
        cursor = cursor + mean_up * size.disc_below_mm
        centre = cursor + axes[2] * size.height_mm / 2
        rib = int(name[1:]) if name.startswith("T") else 0
        placed.append(PlacedVertebra(name, VERSE_LABELS[name], scale[name], rib, size, Frame(centre, axes)))
        cursor, below = centre + axes[2] * size.height_mm / 2, axes[2]
    return _centred(placed[::-1], spec)


def _centred(placed: list[PlacedVertebra], spec: SpineSpec) -> tuple[PlacedVertebra, ...]:
    """Put the mean lumbar centre at the origin and add the sacrum, whose frame lies in its upper endplate."""
    shift = np.mean([v.frame.origin_mm for v in placed if v.name.startswith("L")], axis=0)
    frame = Frame(np.zeros(3), _axes(18.0, spec))
    sacrum = PlacedVertebra("S", VERSE_LABELS["S"], 18.0, 0, level_size(18.0, spec), frame)
    return tuple(replace(v, frame=Frame(v.frame.origin_mm - shift, v.frame.axes)) for v in (*placed, sacrum))


def height_of(spine: tuple[PlacedVertebra, ...], position: float | NDArray[np.float64]) -> NDArray[np.float64]:
    """Patient z of a place on the level scale; 18 = sacral endplate, below it 30 mm per unit."""
    places = [v.position for v in spine] + [22.0]
    z = [float(v.frame.origin_mm[2]) for v in spine]
    return np.asarray(np.interp(position, [-2.0, *places], [z[0] + 50.0, *z, z[-1] - 120.0]))


def position_at(spine: tuple[PlacedVertebra, ...], z_mm: Field) -> Field:
    """The inverse of `height_of`, for whole arrays."""
    places = np.array([-2.0, *(v.position for v in spine), 22.0])
    heights = height_of(spine, places)
    return along_z(z_mm, lambda z: np.interp(z, heights[::-1], places[::-1]))


def centre_at(spine: tuple[PlacedVertebra, ...], z_mm: Field, axis: int) -> Field:
    """Patient x (axis 0) or y (axis 1) of the spine's centre line at given heights."""
    z = np.array([v.frame.origin_mm[2] for v in spine])[::-1]
    values = np.array([v.frame.origin_mm[axis] for v in spine])[::-1]
    return along_z(z_mm, lambda heights: np.interp(heights, z, values))
