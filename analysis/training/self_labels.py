"""Labels of a real CT by our own networks, for review and then for training (self-training).

    python -m analysis.training.self_labels CT --annotation FILE.json --models FOLDER --out FOLDER [--without LEVEL]...

Names come from the marks made by eye, never from the network; a vertebra without a mark near it is left out, and so is
every level named with `--without` after a look at the picture. Ribs are what the fine network calls rib beside a
vertebra, followed along the bone through what the coarse one calls rib; pieces that reach no thoracic vertebra are
dropped. Writes ct.nii.gz, labels.nii.gz, labels_body.nii.gz, labels_ribs.nii.gz and review.png; the folder is then
given to the training as `--data`.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from analysis.coarse_stage import coarse_volume, run_coarse
from analysis.resampling import CanonicalView, IsotropicGrid, canonical_view, from_canonical, to_view, view_box
from analysis.results import Segmentation
from analysis.segmentation import (
    Networks,
    SegmentationLimits,
    choose_device,
    load_networks,
    outline_vertebrae,
    segment_vertebrae,
)
from analysis.spine_detection import RIB as COARSE_RIB
from analysis.training.annotate import bounds_lps_mm, draw, plane
from analysis.training.annotation import LEVEL_LABELS, Annotation, annotation_from_json
from analysis.training.volume_files import image_affine, read_image
from analysis.vertebra_outline import RIB
from analysis.volume import CtVolume

NEAREST_MARK_MM = 10.0
BONE_HU = 180.0  # ribs are followed through brighter voxels only; contrast-filled kidneys need more
FOLLOW_MM = 12.0  # and no farther than this from what a network calls rib
MEDIAL_END_MM = 12.0  # a piece of rib begins within this distance of a vertebra T1 to T12

_CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Review:
    """What the look at the picture decided.

    without : levels whose outline is not good enough
    bone_hu : brightness of ribs; above that of contrast-filled kidneys
    top_mm : LPS z above which no slice is kept
    """

    without: tuple[str, ...] = ()
    bone_hu: float = BONE_HU
    top_mm: float = np.inf


def named_by_marks(
    segmentation: Segmentation, annotation: Annotation, without: tuple[str, ...]
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Vertebra labels and body map with the marks' names; vertebrae without a mark, or left out, are 0."""
    labels = np.where(segmentation.labels == LEVEL_LABELS["S1"], segmentation.labels, 0).astype(np.uint8)
    for level in segmentation.levels:
        centre = np.array(level.centroid_lps_mm)
        distance = {v.level: float(np.linalg.norm(centre - v.centroid_lps_mm)) for v in annotation.vertebrae}
        name = min(distance, key=distance.__getitem__)
        if distance[name] <= NEAREST_MARK_MM and name not in without:
            labels[segmentation.labels == level.label] = LEVEL_LABELS[name]
    return labels, np.where((labels > 0) & (labels < LEVEL_LABELS["S1"]), segmentation.body, 0).astype(np.uint8)


def ribs_by_networks(
    view: CanonicalView, networks: Networks, segmentation: Segmentation
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """What a fine crop calls rib, and what the coarse map does, on the view's voxels."""
    hu, grid = coarse_volume(view, networks.coarse.config.spacing_mm, _CPU)
    maps = run_coarse(hu, networks.coarse, choose_device(SegmentationLimits(device="cpu"))[1])
    to_axis = np.linalg.inv(view.affine[:3, :3] / view.spacing_mm)
    centres = [to_axis @ (np.array(level.centroid_lps_mm) - view.affine[:3, 3]) for level in segmentation.levels]
    crops = outline_vertebrae(view, centres, networks.fine, SegmentationLimits(device="cpu"))
    fine, coarse = np.zeros(view.shape, bool), np.zeros(view.shape, bool)
    for crop in crops:
        _paint(fine, view, crop.grid, crop.probabilities[RIB])
    _paint(coarse, view, grid, maps.tissue[COARSE_RIB])
    return fine, coarse


def _paint(found: NDArray[np.bool_], view: CanonicalView, grid: IsotropicGrid, probability: Tensor) -> None:
    box = view_box(view, grid, 0, _CPU)
    if box is not None:
        found[box.slices] |= to_view(probability[None], box)[0].numpy() > 0.5


def followed_along_bone(
    ribs: tuple[NDArray[np.bool_], NDArray[np.bool_]], view: CanonicalView, labels: NDArray[np.int16], bone_hu: float
) -> NDArray[np.bool_]:
    """Fine ribs on bone, and the bone connected to them within `FOLLOW_MM` of any rib; `labels` names the vertebrae."""
    fine, coarse = ribs
    bone = (view.hu.astype(np.float32) > bone_hu) & (labels == 0)
    near = ndimage.distance_transform_edt(~(fine | coarse), sampling=view.spacing_mm) <= FOLLOW_MM
    pieces, _ = ndimage.label(ndimage.binary_propagation(fine & bone, mask=bone & near), np.ones((3, 3, 3)))
    thoracic = (labels >= LEVEL_LABELS["T1"]) & (labels <= LEVEL_LABELS["T12"])
    beside = ndimage.distance_transform_edt(~thoracic, sampling=view.spacing_mm) <= MEDIAL_END_MM
    kept = np.isin(pieces, np.setdiff1d(np.unique(pieces[beside]), [0]))
    return np.asarray(ndimage.binary_closing(kept) & (labels == 0))


def draw_review(volume: CtVolume, labels: NDArray[np.uint8], ribs: NDArray[np.bool_], annotation: Annotation) -> Figure:
    """Sagittal plane through the bodies, coronal ones through bodies and ribs: vertebrae in colours, ribs red."""
    line = np.array([v.centroid_lps_mm for v in annotation.vertebrae])
    line = line[line[:, 2].argsort()]
    low, high = bounds_lps_mm(volume)
    figure = Figure(figsize=(24, 3 + 12 * float((high - low)[2]) / 300))
    views = (("sagittal", (0.0,)), ("coronal", (0.0,)), ("coronal", (20.0,)), ("coronal", tuple(range(10, 60, 4))))
    for axes, (name, depth) in zip(figure.subplots(1, 4), views, strict=True):
        picture, extent = plane(volume, line, name, depth)
        draw(axes, picture, extent, f"{name}, {depth[0]} to {depth[-1]} mm behind")
        for mask, colour in ((labels > 0, "cyan"), (ribs, "red")):
            shown, _ = plane(CtVolume(mask.astype(np.int16) * 100, volume.affine), line, name, depth)
            axes.contour(shown, [50], colors=colour, linewidths=0.8, extent=extent)
        for v in annotation.vertebrae:
            axes.annotate(v.level, (extent[0] + 5, v.centroid_lps_mm[2]), color="yellow")
    figure.tight_layout()
    return figure


def write_self_labels(ct: Path, annotation: Annotation, networks: Networks, out: Path, review: Review) -> None:
    """Segment, rename, follow the ribs, write the files and the picture."""
    image = read_image(ct)
    volume = CtVolume(np.clip(sitk.GetArrayFromImage(image), -1024, 32767).astype(np.int16), image_affine(image))
    segmentation = segment_vertebrae(volume, networks, SegmentationLimits(device="cpu"))
    labels, body = named_by_marks(segmentation, annotation, review.without)
    view = canonical_view(volume)
    every_level, _ = named_by_marks(segmentation, annotation, ())
    seen = canonical_view(CtVolume(every_level.astype(np.int16), volume.affine)).hu.astype(np.int16)
    found = followed_along_bone(ribs_by_networks(view, networks, segmentation), view, seen, review.bone_hu)
    ribs = from_canonical(found.astype(np.uint8), view) > 0
    out.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(_below(image, review.top_mm), str(out / "ct.nii.gz"))
    for name, array in (("labels", labels), ("labels_body", body), ("labels_ribs", ribs.astype(np.uint8))):
        made = sitk.GetImageFromArray(array)
        made.CopyInformation(image)
        sitk.WriteImage(_below(made, review.top_mm), str(out / f"{name}.nii.gz"))
    draw_review(volume, labels, ribs, annotation).savefig(out / "review.png", dpi=60)


def _below(image: sitk.Image, top_mm: float) -> sitk.Image:
    """The slices at or below `top_mm` (LPS z)."""
    heights = [image.TransformIndexToPhysicalPoint((0, 0, k))[2] for k in range(image.GetDepth())]
    kept = [k for k, z in enumerate(heights) if z <= top_mm]
    return image[:, :, kept[0] : kept[-1] + 1]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Labels of a real CT by our own networks, named by marks.")
    parser.add_argument("ct", type=Path, help="DICOM folder or image file")
    parser.add_argument("--annotation", type=Path, required=True)
    parser.add_argument("--models", type=Path, required=True, help="folder of coarse.safetensors and fine.safetensors")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--without", action="append", default=[], help="level that the review rejected; repeatable")
    parser.add_argument("--bone-hu", type=float, default=BONE_HU, help="brightness of ribs; above that of kidneys")
    parser.add_argument("--top-mm", type=float, default=np.inf, help="leave out all slices above this LPS z")
    a = parser.parse_args(arguments)
    networks = load_networks(a.models / "coarse.safetensors", a.models / "fine.safetensors")
    marks = annotation_from_json(a.annotation.read_text())
    write_self_labels(a.ct, marks, networks, a.out, Review(tuple(a.without), a.bone_hu, a.top_mm))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
