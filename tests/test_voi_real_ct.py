"""The VOI on real CT with labels: inside the labelled body, off the cortex, and with the HU of an independent core.

The independent core is the label eroded by 5 mm, without the endplates (the middle 60 % of the height) and without
values more than 300 HU from its median (islands, sclerosis; symmetric, so that noise does not bias it). The VOI samples
only the middle 9 mm, so both cores are printed: the one over 60 % of the height and the one over the VOI's own depth.
Once with the labels as masks, once with the masks of the shipped networks, which is what a site gets; both are judged
by the labels. The networks' names are not asked: each labelled body is compared with the outline nearest to it.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from analysis.bmd import weighted_statistics
from analysis.errors import VoiError
from analysis.results import Segmentation, Voi
from analysis.segmentation import SegmentationLimits, segment_vertebrae
from analysis.training.volume_files import read_ct, read_labels
from analysis.vertebra_frame import crop_vertebra, fit_frame
from analysis.voi import place_voi
from analysis.voi_rule import VoiRule
from analysis.volume import CtVolume
from node.analysis_setup import MODELS_FOLDER, load_networks
from tests.data import SHARED_DATA, needs_data
from tests.voi_builders import segmentation_from_maps


@dataclass(frozen=True, slots=True)
class Row:
    """One vertebra of one volume; HU and mm."""

    volume: str
    masks: str
    level: str
    voi_hu: float
    core_hu: float
    slab_hu: float
    covered: float
    excluded: float
    to_surface_mm: float
    cortex_voxels: int


def abdomen() -> tuple[CtVolume, Segmentation]:
    folder = SHARED_DATA / "abdomen-3mm"
    volume = read_ct(folder / "ct.nii.gz")
    bodies, bone = read_labels(folder / "vertebra_bodies_by_level.nii.gz"), read_labels(folder / "labels.nii.gz")
    whole = np.where((bone >= 27) & (bone <= 33), 51 - bone.astype(int), 0)  # 27..33 = L5..T11
    labels = np.where(bodies > 0, bodies, whole).astype(np.uint8)
    return volume, segmentation_from_maps(volume, labels, np.where(bodies > 0, 3, labels > 0).astype(np.uint8))


def subregions() -> tuple[CtVolume, Segmentation]:
    folder = SHARED_DATA / "l3-subregions"
    volume = read_ct(folder / "sub-ct_label-22_ct.nii.gz")
    parts = read_labels(folder / "sub-ct_seg-subreg_label-22_msk.nii.gz")
    labels = read_labels(folder / "sub-ct_seg-vert_label-22_msk.nii.gz")
    body = np.select([parts == 50, parts == 49, parts > 0], [3, 2, 1]).astype(np.uint8)
    return volume, segmentation_from_maps(volume, labels, body)


def thoracic() -> tuple[CtVolume, Segmentation]:
    """T12 as one mask; its body is what lies in front of the canal, which is a hole in the axial slices."""
    folder = SHARED_DATA / "cta-thoracic"
    volume = read_ct(folder / "ct.nii.gz")
    mask = read_labels(folder / "vertebra_T12.nii.gz") > 0
    canal = np.stack([ndimage.binary_fill_holes(plane) for plane in mask]) & ~mask
    places = volume.to_lps_mm(np.moveaxis(np.indices(mask.shape), 0, -1).astype(float))
    front_of_canal = float(np.percentile(places[canal][:, 1], 2))
    body = np.where(mask & (places[..., 1] < front_of_canal), 3, mask).astype(np.uint8)
    return volume, segmentation_from_maps(volume, np.where(mask, 19, 0).astype(np.uint8), body)


SOURCES = {
    "abdomen-3mm": (abdomen, ("T12", "L1", "L2", "L3", "L4", "L5")),
    "l3-subregions": (subregions, ("L3",)),
    "cta-thoracic": (thoracic, ("T12",)),
}


def outlined_by_networks(volume: CtVolume, truth: Segmentation) -> Segmentation:
    """The networks' masks with the labels' names, each on the outline nearest to the labelled body."""
    networks = load_networks(MODELS_FOLDER)
    found = segment_vertebrae(volume, networks, SegmentationLimits(device="cpu"))
    levels = []
    for true in truth.levels:
        gaps = [float(np.linalg.norm(np.subtract(one.centroid_lps_mm, true.centroid_lps_mm))) for one in found.levels]
        if min(gaps) < 10.0:
            levels.append(replace(found.levels[int(np.argmin(gaps))], name=true.name))
    return replace(found, levels=tuple(levels))


def measure(name: str, masks: str) -> Iterator[Row]:
    source, levels = SOURCES[name]
    volume, truth = source()
    segmentation = truth if masks == "labels" else outlined_by_networks(volume, truth)
    for level in levels:
        try:
            voi = place_voi(volume, segmentation, level)
        except VoiError as refusal:
            print(f"{name} {masks} {level}: {refusal.code}, {refusal.text}")
            continue
        yield row((name, masks), (volume, truth), voi)


def row(name_and_masks: tuple[str, str], scan: tuple[CtVolume, Segmentation], voi: Voi) -> Row:
    volume, segmentation = scan
    number = next(level.label for level in segmentation.levels if level.name == voi.level)
    body = (segmentation.labels == number) & (segmentation.body >= 2)
    distance_mm = ndimage.distance_transform_edt(np.pad(body, 1), sampling=volume.spacing_mm)[1:-1, 1:-1, 1:-1]
    box = tuple(slice(a, a + n) for a, n in zip(voi.start, voi.weights.shape, strict=True))
    hu = volume.hu[box].astype(float)
    core, slab = (_core_hu(scan, voi.level, distance_mm, share) for share in (0.3, None))
    return Row(
        volume=name_and_masks[0],
        masks=name_and_masks[1],
        level=voi.level,
        voi_hu=float((voi.weights * hu).sum() / voi.weights.sum()),
        core_hu=core,
        slab_hu=slab,
        covered=voi.cancellous_fraction,
        excluded=voi.excluded_fraction,
        to_surface_mm=float(distance_mm[box][voi.weights > 0].min()),
        cortex_voxels=int((segmentation.body[box][voi.weights > 0] == 2).sum()),
    )


def _core_hu(
    scan: tuple[CtVolume, Segmentation], level: str, distance_mm: NDArray[np.float64], half_height: float | None
) -> float:
    """Mean of the eroded label within a share of the height, or within the VOI's depth."""
    volume, segmentation = scan
    frame = fit_frame(crop_vertebra(volume, segmentation, level), segmentation)
    index = np.argwhere(distance_mm > 5.0)
    height_mm = frame.to_frame_mm(volume.to_lps_mm(index.astype(float)))[:, 0]
    limit_mm = 4.5 if half_height is None else half_height * frame.height_mm
    hu = volume.hu[tuple(index[np.abs(height_mm) < limit_mm].T)]
    return float(hu[np.abs(hu - np.median(hu)) < 300].mean())


@needs_data
def test_an_oval_that_covers_half_of_the_section_reads_nearly_the_same_density() -> None:
    """Why small vertebrae may be measured: 5 HU are 4 mg/cm3, two vertebrae of one person differ by more."""
    volume, truth = abdomen()
    levels = ("T12", "L1", "L2", "L3", "L4")
    usual, half = (
        [weighted_statistics(volume, place_voi(volume, truth, level, rule))[0] for level in levels]
        for rule in (VoiRule(), VoiRule(target_fraction=0.5))
    )
    assert np.abs(np.subtract(usual, half)).max() < 5.0


# The largest oval covers 0.549 of the small T12 of the thoracic CT (522 mm2, known without cortex) and 0.54 of the flat
# L5 of the abdomen: less than usual (0.55), measured and flagged.
EXPECTED = {"abdomen-3mm": 6, "l3-subregions": 1, "cta-thoracic": 1}


@needs_data
@pytest.mark.parametrize("masks", ["labels", "networks"])
@pytest.mark.parametrize("name", list(SOURCES))
def test_the_voi_lies_in_the_labelled_body_and_agrees_with_its_core(
    name: str, masks: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with capsys.disabled():
        print(f"\n{'volume':14} masks    level  VOI HU  core  in VOI's depth  covered  excluded  to surface  cortex")
        rows = list(measure(name, masks))
        for r in rows:
            print(
                f"{r.volume:14} {r.masks:8} {r.level:4} {r.voi_hu:8.1f} {r.core_hu:6.1f} {r.slab_hu:12.1f} "
                f"{r.covered:12.2f} {r.excluded:8.1%} {r.to_surface_mm:8.1f} mm {r.cortex_voxels:7d}"
            )
    assert len(rows) == EXPECTED[name] if masks == "labels" else len(rows) >= EXPECTED[name] - 2
    for r in rows:
        assert r.cortex_voxels == 0
        assert r.to_surface_mm > 2.0
        assert 0.50 <= r.covered <= 0.75
        assert abs(r.voi_hu - r.slab_hu) < 5.0, f"{r.volume} {r.level}"
