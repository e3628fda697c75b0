"""Anatomies: label maps of whole torsos on one canonical grid, from which CT is painted.

Convention: arrays are (slices, rows, columns) = (z toward the head, y toward the back, x toward the left), ascending
LPS, isotropic voxels. Levels follow VerSe: T1 = 8 ... T12 = 19, L1 = 20 ... L5 = 24, sacrum 26.

The label maps have no skin, no discs and no split of the vertebrae; these are derived: the split from the front of the
spinal canal, discs from the gaps of the column of bodies, the outline from the hull of everything labelled.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from scipy import ndimage

from analysis.errors import ModelError

SACRUM = 26
BODY, POSTERIOR = 1, 2
RIB_BASE = 40

# Tissue codes. "none" is whatever lies between the labelled organs; the painter decides (fat, muscle, skin, air).
TISSUES = (
    "none", "disc", "canal", "muscle", "back muscle", "liver", "spleen", "kidney", "gland", "bladder", "gallbladder",
    "artery", "vein", "heart", "lung", "airway", "stomach", "small bowel", "colon", "cartilage",
    "vertebra", "sacrum", "rib", "other bone",
)  # fmt: skip
CODE = {name: code for code, name in enumerate(TISSUES)}
BONES = tuple(CODE[name] for name in ("vertebra", "sacrum", "rib", "other bone"))

# First match wins: words in TotalSegmentator's class names -> tissue.
_WORDS = (
    ("vertebrae_S1", "sacrum"), ("vertebrae", "vertebra"), ("sacrum", "sacrum"), ("rib_", "rib"),
    ("costal_cartilages", "cartilage"), ("clavicula", "other bone"), ("scapula", "other bone"),
    ("humerus", "other bone"), ("femur", "other bone"), ("hip", "other bone"), ("sternum", "other bone"),
    ("skull", "other bone"), ("spinal_cord", "canal"), ("autochthon", "back muscle"), ("gluteus", "muscle"),
    ("iliopsoas", "muscle"), ("liver", "liver"), ("spleen", "spleen"), ("portal_vein", "vein"), ("kidney", "kidney"),
    ("lung", "lung"), ("trachea", "airway"), ("heart", "heart"), ("aorta", "artery"), ("artery", "artery"),
    ("brachiocephalic_trunk", "artery"), ("vena", "vein"), ("vein", "vein"), ("atrial", "heart"),
    ("urinary_bladder", "bladder"), ("gallbladder", "gallbladder"), ("colon", "colon"), ("small_bowel", "small bowel"),
    ("duodenum", "small bowel"), ("stomach", "stomach"), ("esophagus", "gland"),
)  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class Anatomy:
    """One torso as label maps.

    tissue : uint8, codes of `TISSUES`
    vertebra : uint8, VerSe level; on ribs `RIB_BASE` + rib number; 0 elsewhere
    part : uint8, 0 none, 1 vertebral body, 2 posterior elements
    depth : uint8, mm outside the hull of everything labelled (0 inside): muscle wall, fat, skin and air by distance
    soft : uint8, tissue with the bones replaced by the nearest other tissue
    bone_hu : int16 or None, measured HU of the bone, 0 where there is none
    """

    name: str
    spacing_mm: float
    tissue: NDArray[np.uint8]
    vertebra: NDArray[np.uint8]
    part: NDArray[np.uint8]
    depth: NDArray[np.uint8]
    soft: NDArray[np.uint8]
    bone_hu: NDArray[np.int16] | None = None

    def centroids(self) -> dict[int, NDArray[np.float64]]:
        """Voxel index of the centre of mass of every vertebral body whose mid-section is inside the map."""
        labels = np.where(self.part == BODY, self.vertebra, 0)
        found = {}
        for level, box in enumerate(ndimage.find_objects(labels), start=1):
            if box is not None and level < SACRUM and box[0].start > 1 and box[0].stop < labels.shape[0] - 1:
                inside = np.argwhere(labels[box] == level)
                found[level] = inside.mean(axis=0) + [side.start for side in box]
        return found

    def save(self, path: Path) -> None:
        arrays = {name: getattr(self, name) for name in ("tissue", "vertebra", "part", "depth", "soft")}
        if self.bone_hu is not None:
            arrays["bone_hu"] = self.bone_hu
        np.savez(path, spacing_mm=self.spacing_mm, **arrays)


def load_anatomy(path: Path) -> Anatomy:
    with np.load(path) as stored:
        arrays = {name: stored[name] for name in stored.files if name != "spacing_mm"}
        return Anatomy(path.stem, float(stored["spacing_mm"]), **arrays)


def read_canonical(path: Path) -> tuple[NDArray[np.generic], float]:
    """A NIfTI or NRRD file as (slices, rows, columns) ascending LPS, and its (isotropic) spacing in mm."""
    image = sitk.DICOMOrient(sitk.ReadImage(str(path)), "LPS")
    spacing = image.GetSpacing()
    if max(spacing) - min(spacing) > 0.01:
        raise ModelError(f"{path.name} has voxels of {spacing} mm; label maps for training must be isotropic")
    return sitk.GetArrayFromImage(image), float(spacing[0])


def read_torso(folder: Path, name: str) -> Anatomy:
    """Read `<name>_all.nii.gz`, `<name>_vert.nii.gz`, `<name>_names.txt` (TotalSegmentator classes, VerSe levels)."""
    classes, spacing_mm = read_canonical(folder / f"{name}_all.nii.gz")
    levels, _ = read_canonical(folder / f"{name}_vert.nii.gz")
    tissue_of_class, rib_of_class = _class_tables(folder / f"{name}_names.txt")
    tissue, ribs = tissue_of_class[classes], rib_of_class[classes]
    labels = np.where(tissue == CODE["vertebra"], levels, ribs).astype(np.uint8)
    anatomy = derive_anatomy(name, spacing_mm, tissue, labels)
    bone_file = folder / f"ct{name[-3:]}_bone.nrrd"
    if not bone_file.exists():
        return anatomy
    bone_hu = read_canonical(bone_file)[0].astype(np.int16)
    margin = (anatomy.tissue.shape[1] - bone_hu.shape[1]) // 2
    return replace(anatomy, bone_hu=np.pad(bone_hu, ((0, 0), (margin, margin), (margin, margin))))


def _class_tables(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Lookup tables from the class numbers of a names file to tissue code and to `RIB_BASE` + rib number."""
    tissues, ribs = np.zeros(256, np.uint8), np.zeros(256, np.uint8)
    for line in path.read_text().splitlines():
        number, name = line.split()[:2]
        tissues[int(number)] = CODE[next((tissue for word, tissue in _WORDS if word in name), "gland")]
        if name.startswith("rib_"):
            ribs[int(number)] = RIB_BASE + int(name.rsplit("_", 1)[1])
    return tissues, ribs


def derive_anatomy(
    name: str,
    spacing_mm: float,
    tissue: NDArray[np.uint8],
    levels: NDArray[np.uint8],
    margin_mm: float = 45.0,
) -> Anatomy:
    """Add what the label maps lack: outline, split of the vertebrae, discs, and the tissue map without bones."""
    pad = round(margin_mm / spacing_mm)
    tissue, levels = (np.pad(a, ((0, 0), (pad, pad), (pad, pad))) for a in (tissue, levels))
    vertebra = np.where(np.isin(tissue, (CODE["vertebra"], CODE["rib"])) & (levels != 25), levels, 0).astype(np.uint8)
    part = split_vertebrae(vertebra, tissue == CODE["canal"], spacing_mm)
    tissue = np.where(_discs(part, tissue, spacing_mm), CODE["disc"], tissue).astype(np.uint8)
    depth = _depth_outside(tissue > 0, spacing_mm)
    return Anatomy(name, spacing_mm, tissue, vertebra, part, depth, _without_bones(tissue))


def split_vertebrae(
    vertebra: NDArray[np.uint8], canal: NDArray[np.bool_], spacing_mm: float, wall_mm: float = 1.0
) -> NDArray[np.uint8]:
    """1 in front of the spinal canal's front wall, 2 behind it; the wall is a straight line in (z, y) per vertebra."""
    part = np.zeros(vertebra.shape, np.uint8)
    front = np.where(canal.any(axis=1), canal.argmax(axis=1), -1).astype(float)  # (slices, columns)
    front[front < 0] = np.nan
    for level, box in enumerate(ndimage.find_objects(vertebra), start=1):
        if box is not None and level < RIB_BASE:
            _split_one(vertebra, part, front, (level, box), wall_mm / spacing_mm)
    return part


def _split_one(
    vertebra: NDArray[np.uint8],
    part: NDArray[np.uint8],
    front: NDArray[np.float64],
    level_and_box: tuple[int, tuple[slice, slice, slice]],
    wall: float,
) -> None:
    level, box = level_and_box
    own = vertebra[box] == level
    slices = np.arange(box[0].start, box[0].stop)
    with np.errstate(all="ignore"):
        wall_rows = np.array([_low_quantile(front[z]) for z in slices])
    known = np.isfinite(wall_rows)
    if known.sum() < 3:
        return
    slope, offset = np.polyfit(slices[known], wall_rows[known], 1)
    rows = np.arange(box[1].start, box[1].stop)
    ahead = rows[None, :] < (offset + slope * slices - wall)[:, None]
    body = _largest(ndimage.binary_opening(own & ahead[:, :, None], iterations=2))
    body = ndimage.binary_dilation(body, iterations=2) & own & ahead[:, :, None]
    part[box][own] = POSTERIOR
    part[box][body] = BODY


def _low_quantile(rows: NDArray[np.float64]) -> float:
    rows = rows[np.isfinite(rows)]
    return float(np.quantile(rows, 0.2)) if rows.size > 3 else float("nan")


def _largest(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    labels, n = ndimage.label(mask)
    if n < 2:
        return mask
    return np.asarray(labels == 1 + np.bincount(labels.ravel())[1:].argmax())


def _discs(part: NDArray[np.uint8], tissue: NDArray[np.uint8], spacing_mm: float) -> NDArray[np.bool_]:
    """Gaps up to 22 mm high between bodies (and sacrum) that nothing else occupies."""
    reach = round(11.0 / spacing_mm)
    column = (part == BODY) | (tissue == CODE["sacrum"])
    line = np.ones((2 * reach + 1, 1, 1), bool)
    closed = ndimage.binary_closing(np.pad(column, ((reach, reach), (0, 0), (0, 0))), line)[reach:-reach]
    closed &= ndimage.binary_dilation(part == BODY, line)
    return np.asarray(ndimage.binary_opening(closed & (tissue == 0), np.ones((2, 3, 3), bool)))


def _depth_outside(labelled: NDArray[np.bool_], spacing_mm: float, bridge_mm: float = 45.0) -> NDArray[np.uint8]:
    """Distance (mm, per slice) outside the closing of everything labelled, smoothed along z."""
    depth = np.zeros(labelled.shape, np.float32)
    pad = round(bridge_mm / spacing_mm) + 2
    for z, section in enumerate(labelled):
        if not section.any():
            depth[z] = 255
            continue
        near = ndimage.distance_transform_edt(~np.pad(section, pad)) * spacing_mm <= bridge_mm
        closed = ndimage.distance_transform_edt(near)[pad:-pad, pad:-pad] * spacing_mm > bridge_mm - spacing_mm
        depth[z] = ndimage.distance_transform_edt(~(closed | section)) * spacing_mm
    smooth = ndimage.gaussian_filter(np.minimum(depth, 200), (4, 1, 1))
    return np.asarray(np.clip(smooth, 0, 255), np.uint8)


def _without_bones(tissue: NDArray[np.uint8]) -> NDArray[np.uint8]:
    bone = np.isin(tissue, BONES)
    nearest = ndimage.distance_transform_edt(bone, return_distances=False, return_indices=True)
    return np.asarray(tissue[tuple(nearest)])
