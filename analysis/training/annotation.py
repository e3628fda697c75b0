"""Vertebrae marked by eye: level, body centroid and the centres of both endplates, as JSON beside the code.

A level may be in doubt; `level_confidence` is the reader's own probability that the name is right. Positions: LPS mm.
From the marks a rough mask of the vertebral body can be grown (`grow_bodies`) for training of the coarse network.
"""

import json
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.volume import CtVolume

Point = tuple[float, float, float]

# VerSe numbering: C7 = 7, T1 = 8 ... T12 = 19, L1 = 20 ... L6 = 25, sacrum 26.
LEVEL_LABELS = (
    {"C7": 7, "L6": 25, "S1": 26} | {f"T{i}": 7 + i for i in range(1, 13)} | {f"L{i}": 19 + i for i in range(1, 6)}
)

# Width and depth of the body in mm at mid height, T1 to L5; measured on segmented CT and Panjabi 1991/1992.
BODY_WIDTH_MM = (26, 27, 26, 27, 28, 29, 30, 31, 33, 35, 38, 40, 41, 42, 44, 47, 50)
BODY_DEPTH_MM = (17, 19, 20, 22, 24, 26, 28, 29, 30, 31, 32, 33, 34, 35, 36, 37, 37)


@dataclass(frozen=True, slots=True)
class AnnotatedVertebra:
    """One vertebra. An endplate outside the volume is None; `complete` refers to the body."""

    level: str
    centroid_lps_mm: Point
    upper_endplate_lps_mm: Point | None
    lower_endplate_lps_mm: Point | None
    complete: bool
    level_confidence: float
    comment: str = ""


@dataclass(frozen=True, slots=True)
class Annotation:
    """All vertebrae of one volume, from head to feet. `anchors`: what the numbering rests on."""

    volume: str
    licence: str
    anchors: tuple[str, ...]
    comment: str
    vertebrae: tuple[AnnotatedVertebra, ...]


def _point(values: list[float] | None) -> Point | None:
    return None if values is None else (float(values[0]), float(values[1]), float(values[2]))


def _vertebra(values: dict[str, Any]) -> AnnotatedVertebra:
    points = {key: _point(values[key]) for key in values if key.endswith("_lps_mm")}
    return AnnotatedVertebra(**(values | points))


def annotation_from_json(text: str) -> Annotation:
    """Parse one annotation file; KeyError or TypeError when a key is missing or unknown."""
    values = json.loads(text)
    vertebrae = tuple(_vertebra(vertebra) for vertebra in values.pop("vertebrae"))
    return Annotation(**(values | {"anchors": tuple(values["anchors"]), "vertebrae": vertebrae}))


def annotation_to_json(annotation: Annotation) -> str:
    """One vertebra per line, so that a change of one mark is a change of one line."""
    values = asdict(annotation)
    vertebrae = ",\n".join("  " + json.dumps(vertebra) for vertebra in values.pop("vertebrae"))
    head = json.dumps(values, indent=1)[:-2]
    return f'{head},\n "vertebrae": [\n{vertebrae}\n ]\n}}\n'


def vertebra_from_mask(level: str, mask: NDArray[np.bool_], volume: CtVolume) -> AnnotatedVertebra:
    """Centroid and endplate centres of a segmented body; complete unless it touches the first or last slice."""
    positions = volume.to_lps_mm(np.argwhere(mask).astype(np.float64))
    centroid = positions.mean(axis=0)
    near_axis = positions[np.linalg.norm(positions[:, :2] - centroid[:2], axis=1) < 8.0]
    low, high = near_axis[:, 2].min(), near_axis[:, 2].max()
    inside = bool(positions[:, 2].min() > volume.affine[2, 3] + 0.1)
    upper, lower = (
        (float(centroid[0]), float(centroid[1]), float(high)),
        (float(centroid[0]), float(centroid[1]), float(low)),
    )
    return AnnotatedVertebra(level, tuple(centroid.round(1)), upper, lower, inside, 1.0, "from the label map")


def centre_line(annotation: Annotation) -> NDArray[np.float64]:
    """Centroids and endplate centres of all vertebrae, (points, 3) LPS mm, sorted from feet to head."""
    points = [
        point
        for vertebra in annotation.vertebrae
        for point in (vertebra.upper_endplate_lps_mm, vertebra.centroid_lps_mm, vertebra.lower_endplate_lps_mm)
        if point is not None
    ]
    line = np.array(points, dtype=np.float64)
    return line[line[:, 2].argsort()]


def _body_size_mm(level: str) -> tuple[float, float]:
    index = min(max(LEVEL_LABELS[level] - 8, 0), len(BODY_WIDTH_MM) - 1)
    return float(BODY_WIDTH_MM[index]), float(BODY_DEPTH_MM[index])


def grow_body(vertebra: AnnotatedVertebra, volume: CtVolume) -> NDArray[np.bool_]:
    """Elliptic cylinder between the endplates, with a notch for the canal side; rough, for the coarse network only.

    The size is the population's; the outline is a superellipse of exponent 2.5, whose flat back resembles the body's.
    """
    upper, lower = vertebra.upper_endplate_lps_mm, vertebra.lower_endplate_lps_mm
    mask = np.zeros(volume.hu.shape, dtype=bool)
    if upper is None or lower is None:
        return mask
    axis = np.subtract(upper, lower)
    height_mm = float(np.linalg.norm(axis))
    axis = axis / height_mm
    lateral = np.cross((0.0, 1.0, 0.0), axis)
    lateral /= np.linalg.norm(lateral)
    posterior = np.cross(axis, lateral)
    centre = volume.to_index(np.array(vertebra.centroid_lps_mm))
    reach = np.ceil(40.0 / np.array(volume.spacing_mm)).astype(int)
    start = np.maximum(np.floor(centre).astype(int) - reach, 0)
    stop = np.minimum(np.ceil(centre).astype(int) + reach + 1, volume.hu.shape)
    index = np.stack(np.meshgrid(*(np.arange(a, b) for a, b in zip(start, stop, strict=True)), indexing="ij"), axis=-1)
    offset = volume.to_lps_mm(index.astype(np.float64)) - np.array(vertebra.centroid_lps_mm)
    width_mm, depth_mm = _body_size_mm(vertebra.level)
    radius = np.abs(offset @ lateral / (width_mm / 2)) ** 2.5 + np.abs(offset @ posterior / (depth_mm / 2)) ** 2.5
    inside = (radius < 1.0) & (np.abs(offset @ axis) < height_mm / 2)
    mask[start[0] : stop[0], start[1] : stop[1], start[2] : stop[2]] = inside
    return mask


def grow_bodies(annotation: Annotation, volume: CtVolume) -> NDArray[np.uint8]:
    """Rough bodies of all complete vertebrae in VerSe numbering, uint8 on the volume's grid."""
    labels = np.zeros(volume.hu.shape, dtype=np.uint8)
    for vertebra in annotation.vertebrae:
        if vertebra.level in LEVEL_LABELS and vertebra.level != "S1":
            labels[grow_body(vertebra, volume)] = LEVEL_LABELS[vertebra.level]
    return labels
