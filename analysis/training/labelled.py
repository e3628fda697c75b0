"""Real CT with labels as training cases: what is labelled teaches, what is not is ignored.

A labelled scan is resampled to isotropic voxels in canonical orientation. Unlabelled bone is unknown (it may be a rib
or a vertebra that nobody outlined), unlabelled soft tissue is background.
"""

from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from analysis.training.anatomy import BODY, CODE, POSTERIOR, RIB_BASE, SACRUM, Anatomy, split_vertebrae
from analysis.training.annotation import LEVEL_LABELS, Annotation, grow_bodies
from analysis.training.coarse_samples import CoarseCase
from analysis.training.deform import coarse_target
from analysis.training.fine_samples import FineRanges, fine_scene, fine_target, finish_fine, place, sample_linear
from analysis.training.paint import random_scanner, scan
from analysis.training.samples import IGNORE, Sample
from analysis.training.volume_files import image_affine
from analysis.vbnet import VBNetConfig
from analysis.volume import CtVolume

BONE_HU = 130.0  # unlabelled voxels above are not taken as background
_REAL_RANGES = FineRanges(scale_xy=(0.88, 1.14), scale_z=(0.88, 1.14), elastic_mm=(1.2, 0.4), organ_shift_mm=0.0)


@dataclass(frozen=True, slots=True, eq=False)
class LabelledScan:
    """CT and labels on one isotropic canonical grid.

    anatomy : tissue codes (vertebra, sacrum, rib or none), levels and parts; part 0 on a vertebra = not split
    hu : float32
    known : where the labels may be believed
    cortex : 1 cortex, 2 cancellous, 0 not told apart by the labels
    """

    anatomy: Anatomy
    hu: NDArray[np.float32]
    known: NDArray[np.bool_]
    cortex: NDArray[np.uint8]


@dataclass(frozen=True, slots=True, eq=False)
class RawLabels:
    """Images of one case as read from files; `parts` (1 body, 2 posterior), `cortex` and `ribs` may be missing."""

    name: str
    ct: sitk.Image
    levels: sitk.Image
    parts: sitk.Image | None = None
    cortex: sitk.Image | None = None
    ribs: sitk.Image | None = None


def canonical_grid(image: sitk.Image, spacing_mm: float) -> sitk.Image:
    """An empty isotropic image in LPS orientation that covers `image`."""
    oriented = sitk.DICOMOrient(image, "LPS")
    size = [max(1, round(n * s / spacing_mm)) for n, s in zip(oriented.GetSize(), oriented.GetSpacing(), strict=True)]
    grid = sitk.Image(size, sitk.sitkUInt8)
    grid.SetSpacing((spacing_mm,) * 3)
    shift = [(spacing_mm - s) / 2 for s in oriented.GetSpacing()]
    direction = np.array(oriented.GetDirection()).reshape(3, 3)
    grid.SetOrigin(tuple(np.array(oriented.GetOrigin()) + direction @ shift))
    grid.SetDirection(oriented.GetDirection())
    return grid


def on_grid(image: sitk.Image, grid: sitk.Image, linear: bool) -> NDArray[np.generic]:
    """Resample; CT linearly after averaging to the grid's spacing, labels by the largest interpolated share."""
    if not linear:
        labels: NDArray[np.generic] = sitk.GetArrayFromImage(
            sitk.Resample(image, grid, sitk.Transform(), sitk.sitkLabelLinear, 0.0)
        )
        return labels
    ct = sitk.Cast(image, sitk.sitkFloat32)
    widths = [0.4 * max(0.0, g - s) for g, s in zip(grid.GetSpacing(), image.GetSpacing(), strict=True)]
    if max(widths) > 0.1:
        ct = sitk.SmoothingRecursiveGaussian(ct, [max(w, 1e-2) for w in widths])
    hu: NDArray[np.generic] = sitk.GetArrayFromImage(
        sitk.Resample(ct, grid, sitk.Transform(), sitk.sitkLinear, -1024.0)
    )
    return hu


def labelled_scan(raw: RawLabels, spacing_mm: float) -> LabelledScan:
    """Bring a case to the canonical grid; split the vertebrae at the canal where the labels do not."""
    grid = canonical_grid(raw.ct, spacing_mm)
    hu = on_grid(raw.ct, grid, linear=True).astype(np.float32)
    levels = on_grid(raw.levels, grid, linear=False).astype(np.uint8)
    vertebra = np.where(levels < SACRUM, levels, 0).astype(np.uint8)
    tissue = np.zeros(levels.shape, np.uint8)
    tissue[vertebra > 0] = CODE["vertebra"]
    tissue[levels >= SACRUM] = CODE["sacrum"]
    if raw.ribs is not None:
        tissue[(tissue == 0) & (on_grid(raw.ribs, grid, linear=False).astype(np.uint8) > 0)] = CODE["rib"]
    if raw.parts is None:
        part = split_vertebrae(vertebra, _canal_from_rings(vertebra > 0), spacing_mm)
    else:
        part = np.where(vertebra > 0, on_grid(raw.parts, grid, linear=False), 0).astype(np.uint8)
    unsplit = (vertebra > 0) & (part == 0)
    unlabelled_bone = ndimage.binary_dilation((tissue == 0) & (hu > BONE_HU)) & (tissue == 0)
    near = ndimage.binary_dilation(tissue > 0, iterations=max(1, round(3.0 / spacing_mm)))
    known = ~unsplit & ~(unlabelled_bone & ~near)
    cortex = np.zeros_like(part) if raw.cortex is None else on_grid(raw.cortex, grid, linear=False).astype(np.uint8)
    anatomy = Anatomy(raw.name, spacing_mm, tissue, vertebra, part, np.zeros_like(part), tissue)
    return LabelledScan(anatomy, hu, known, cortex)


def _canal_from_rings(vertebra: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Holes of the vertebrae in each slice: the spinal canal where the ring is closed."""
    closed = ndimage.binary_closing(vertebra, np.ones((3, 3, 3), bool))
    return np.stack([ndimage.binary_fill_holes(section) & ~section for section in closed])


# --- coarse ---------------------------------------------------------------------------------------------------------


def coarse_case(scan_2mm: LabelledScan) -> CoarseCase:
    """Targets at twice the scan's spacing; unknown voxels are ignored, cells count as known by majority."""
    target, level = coarse_target(scan_2mm.anatomy, 2)
    known = torch.nn.functional.avg_pool3d(torch.from_numpy(scan_2mm.known)[None, None].float(), 2)[0, 0].numpy()
    target[(known < 0.6) & (target == 0)] = IGNORE
    target[(known < 0.3)] = IGNORE
    centroids = np.array(list(scan_2mm.anatomy.centroids().values())).reshape(-1, 3)
    return CoarseCase({"hu": scan_2mm.hu.astype(np.int16)}, target, level, centroids, centroids_known=False)


def annotated_case(name: str, ct: sitk.Image, annotation: Annotation) -> CoarseCase:
    """A CT with marked centroids and endplates: cores of grown bodies, centroids and levels; other bone unknown."""
    grid = canonical_grid(ct, 2.0)
    hu = on_grid(ct, grid, linear=True).astype(np.float32)
    volume = CtVolume(hu, image_affine(grid))
    bodies = grow_bodies(annotation, volume)
    core = ndimage.binary_erosion(bodies > 0, iterations=2)
    target = np.full(hu.shape, IGNORE, np.uint8)
    target[(hu < 70) & ~ndimage.binary_dilation(bodies > 0, iterations=4)] = 0
    target[core] = BODY
    whole = [v for v in annotation.vertebrae if v.complete and v.level in LEVEL_LABELS and v.level != "S1"]
    centroids = volume.to_index(np.array([v.centroid_lps_mm for v in whole]))
    sure = {LEVEL_LABELS[v.level] for v in whole if v.level_confidence >= 0.8}
    level = np.where(core & np.isin(bodies, list(sure)), bodies, 0)
    n = tuple(2 * (s // 2) for s in hu.shape)
    half = tuple(slice(1, s, 2) for s in n)
    return CoarseCase({"hu": hu.astype(np.int16)}, target[half], level[half].astype(np.uint8), centroids, False)


# --- fine -----------------------------------------------------------------------------------------------------------


def labelled_fine_sample(
    scan_1mm: LabelledScan, centroid: NDArray[np.float64], level: int, config: VBNetConfig, rng: np.random.Generator
) -> Sample:
    """One crop of a real CT about the body of `level`, slightly deformed, with its labels where known."""
    anatomy = scan_1mm.anatomy
    placement = place(centroid, anatomy.spacing_mm, config, rng, _REAL_RANGES)
    _, kinds = fine_scene(anatomy, level, placement, config, rng)
    values = np.stack([scan_1mm.hu, scan_1mm.known, scan_1mm.cortex == 1, scan_1mm.cortex == 2]).astype(np.float32)
    hu, known, cortex, core = sample_linear(torch.from_numpy(values), placement.source)
    outside = _outside(placement.source, anatomy.tissue.shape)
    hu = torch.where(outside, torch.tensor(-1000.0), hu * float(rng.uniform(0.93, 1.07)) + float(rng.normal(0, 10)))
    if rng.uniform() < 0.6:
        hu = scan(hu, (config.spacing_mm,) * 2, rng, random_scanner(rng, (2.0, 40.0)))
    target = fine_target(kinds)
    told = (target == 2) | (target == 3)
    if float(cortex.max()) > 0:
        target[told & ((cortex + core) > 0.5).numpy()] = 2
        target[told & (core > cortex).numpy()] = 3
    target[(known < 0.5).numpy()] = IGNORE
    target[outside.numpy()] = 0
    return finish_fine(hu, target, placement.cue_mm, config, rng)


def _outside(source: Tensor, shape: tuple[int, ...]) -> Tensor:
    return ((source < -0.5) | (source > torch.tensor(shape) - 0.5)).any(dim=-1)


def fine_targets(scan_1mm: LabelledScan) -> list[tuple[int, NDArray[np.float64]]]:
    """Vertebrae that a fine crop may be centred on: split, and inside the volume."""
    centroids = scan_1mm.anatomy.centroids()
    posterior = {int(v) for v in np.unique(scan_1mm.anatomy.vertebra[scan_1mm.anatomy.part == POSTERIOR])}
    return [(level, centre) for level, centre in centroids.items() if level in posterior and level < RIB_BASE]
