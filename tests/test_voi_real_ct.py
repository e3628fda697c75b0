"""The VOI on real CT with labels: inside the labelled body, off the cortex, and with the HU of an independent core.

The independent core is the label eroded by 5 mm, without the endplates (the middle 60 % of the height) and without
values more than 300 HU from its median (islands, sclerosis; symmetric, so that noise does not bias it). The VOI samples
only the middle 9 mm, so both cores are printed: the one over 60 % of the height and the one over the VOI's own depth.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from analysis.errors import VoiError
from analysis.results import Segmentation, Voi
from analysis.training.volume_files import read_ct, read_labels
from analysis.vertebra_frame import crop_vertebra, fit_frame
from analysis.voi import place_voi
from analysis.volume import CtVolume
from tests.data import SHARED_DATA, needs_data
from tests.voi_builders import segmentation_from_maps


@dataclass(frozen=True, slots=True)
class Row:
    """One vertebra of one volume; HU and mm."""

    volume: str
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
    "abdomen-3mm": (abdomen, ("T12", "L1", "L2", "L3", "L4")),
    "l3-subregions": (subregions, ("L3",)),
    "cta-thoracic": (thoracic, ("T12",)),
}


def measure(name: str) -> Iterator[Row]:
    source, levels = SOURCES[name]
    volume, segmentation = source()
    for level in levels:
        try:
            voi = place_voi(volume, segmentation, level)
        except VoiError as refusal:
            print(f"{name} {level}: {refusal.code}, {refusal.text}")
            continue
        yield row(name, (volume, segmentation), voi)


def row(name: str, scan: tuple[CtVolume, Segmentation], voi: Voi) -> Row:
    volume, segmentation = scan
    number = next(level.label for level in segmentation.levels if level.name == voi.level)
    body = (segmentation.labels == number) & (segmentation.body >= 2)
    distance_mm = ndimage.distance_transform_edt(np.pad(body, 1), sampling=volume.spacing_mm)[1:-1, 1:-1, 1:-1]
    box = tuple(slice(a, a + n) for a, n in zip(voi.start, voi.weights.shape, strict=True))
    hu = volume.hu[box].astype(float)
    core, slab = (_core_hu(scan, voi.level, distance_mm, share) for share in (0.3, None))
    return Row(
        volume=name,
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
@pytest.mark.parametrize("name", list(SOURCES))
def test_the_voi_lies_in_the_labelled_body_and_agrees_with_its_core(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = list(measure(name))
    with capsys.disabled():
        print(
            f"\n{'volume':14} level  VOI HU  core  core in VOI's depth  covered  excluded  to surface mm  cortex voxels"
        )
        for r in rows:
            print(
                f"{r.volume:14} {r.level:4} {r.voi_hu:8.1f} {r.core_hu:6.1f} {r.slab_hu:12.1f} {r.covered:16.2f} "
                f"{r.excluded:8.1%} {r.to_surface_mm:12.1f} {r.cortex_voxels:10d}"
            )
    # the T12 of the thoracic CT is so small (522 mm2, known without cortex) that the largest oval covers 0.549 of it:
    # the rule refuses it, and that is what must happen
    assert len(rows) == {"abdomen-3mm": 5, "l3-subregions": 1, "cta-thoracic": 0}[name]
    for r in rows:
        assert r.cortex_voxels == 0
        assert r.to_surface_mm > 2.0
        assert 0.55 <= r.covered <= 0.75
        assert abs(r.voi_hu - r.slab_hu) < 5.0, f"{r.volume} {r.level}"
