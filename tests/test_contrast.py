"""Contrast seen in the images: a painted abdomen with and without enhancement, and real CT of both kinds."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from analysis.contrast import detect_contrast
from analysis.results import Segmentation
from analysis.training.volume_files import read_ct, read_labels
from analysis.volume import CtVolume, axial_affine
from tests.data import SHARED_DATA, needs_data
from tests.voi_builders import segmentation_from_maps

SPACING_MM = 3.0


def painted_abdomen(
    aorta_hu: float, kidney_hu: float, bowel_hu: float = 25.0, noise_hu: float = 15.0
) -> tuple[CtVolume, Segmentation]:
    """Fat with two vertebrae, aorta, vena cava, psoas, kidneys and a loop of bowel in front."""
    z, y, x = np.meshgrid(*[np.arange(n) * SPACING_MM for n in (36, 60, 80)], indexing="ij")
    x, y = x - 120.0, y - 100.0
    hu = np.full(x.shape, -100.0)
    for centre in (-40.0, 40.0):
        hu[np.hypot(x - centre, y - 12.0) < 16.0] = 52.0
    for centre in (-65.0, 65.0):
        kidney = ((x - centre) / 26) ** 2 + ((y - 8.0) / 24) ** 2 + ((z - 54.0) / 48) ** 2 < 1
        hu[kidney] = kidney_hu
    hu[np.hypot(x - 12.0, y + 32.0) < 10.0] = aorta_hu
    hu[np.hypot(x + 14.0, y + 30.0) < 10.0] = min(aorta_hu, 45.0)
    hu[(np.hypot(y + 62.0, z - 54.0) < 12.0) & (np.abs(x) < 60)] = bowel_hu
    labels = np.zeros(hu.shape, dtype=np.uint8)
    body = np.zeros(hu.shape, dtype=np.uint8)
    for label, height in ((20, 72.0), (21, 36.0)):
        vertebra = (np.hypot(x / 21, y / 15.5) < 1) & (np.abs(z - height) < 13.0)
        arch = (np.abs(x) < 35) & (y > 20) & (y < 45) & (np.abs(z - height) < 10.0)
        labels[vertebra | arch], body[arch], body[vertebra] = label, 1, 3
    hu[body == 3], hu[body == 1] = 170.0, 400.0
    hu += np.random.default_rng(0).normal(0, noise_hu, hu.shape)
    volume = CtVolume(hu.astype(np.float32), axial_affine((SPACING_MM,) * 3, (-120.0, -100.0, 0.0)))
    return volume, segmentation_from_maps(volume, labels, body)


def test_an_unenhanced_abdomen_is_not_refused_and_its_blood_is_measured() -> None:
    found = detect_contrast(*painted_abdomen(aorta_hu=42.0, kidney_hu=32.0))
    assert not found.enhanced and found.reasons == ()
    assert found.aorta_hu == pytest.approx(45.0, abs=10.0)


@pytest.mark.parametrize(
    ("aorta_hu", "kidney_hu"), [(320.0, 150.0), (150.0, 190.0), (130.0, 32.0), (60.0, 140.0)],
    ids=["arterial", "portal", "aorta only", "late: kidneys only"],
)  # fmt: skip
def test_every_phase_is_seen_by_vessel_or_organ(aorta_hu: float, kidney_hu: float) -> None:
    found = detect_contrast(*painted_abdomen(aorta_hu, kidney_hu))
    assert found.enhanced
    assert {reason.code for reason in found.reasons} == {"CONTRAST_IMAGE"}


def test_the_aorta_of_an_enhanced_scan_is_measured() -> None:
    assert detect_contrast(*painted_abdomen(300.0, 150.0)).aorta_hu == pytest.approx(280.0, abs=35.0)


def test_a_flipped_volume_gives_the_same_answer() -> None:
    volume, segmentation = painted_abdomen(150.0, 190.0)
    flip = np.diag([-1.0, -1.0, -1.0, 1.0])
    flip[:3, 3] = np.array(volume.hu.shape) - 1
    turned = CtVolume(volume.hu[::-1, ::-1, ::-1], volume.affine @ flip)
    maps = {"labels": segmentation.labels[::-1, ::-1, ::-1], "body": segmentation.body[::-1, ::-1, ::-1]}
    one, other = detect_contrast(volume, segmentation), detect_contrast(turned, replace(segmentation, **maps))  # type: ignore[arg-type]
    assert one.enhanced and other.enhanced
    assert one.organ_cm3 == pytest.approx(other.organ_cm3, rel=0.05)


def test_bright_bone_and_a_calcified_wall_are_no_contrast() -> None:
    volume, segmentation = painted_abdomen(42.0, 32.0)
    hu = volume.hu.copy()
    index = np.argwhere(np.abs(hu - 42.0) < 60)
    hu[tuple(index[::400].T)] = 600.0  # specks of calcification
    assert not detect_contrast(replace(volume, hu=hu), segmentation).enhanced


@needs_data
def test_the_native_abdomen_of_the_real_data_is_native() -> None:
    folder = SHARED_DATA / "abdomen-3mm"
    volume = read_ct(folder / "ct.nii.gz")
    bodies = read_labels(folder / "vertebra_bodies_by_level.nii.gz")
    bone = read_labels(folder / "labels.nii.gz") > 0
    labels = np.where(bodies > 0, bodies, np.where(bone, 30, 0)).astype(np.uint8)
    body = np.where(bodies > 0, 3, np.where(bone, 1, 0)).astype(np.uint8)
    found = detect_contrast(volume, segmentation_from_maps(volume, labels, body))
    assert not found.enhanced
    assert found.aorta_hu is not None and 25.0 < found.aorta_hu < 60.0


@needs_data
def test_the_arterial_phase_of_the_real_data_is_enhanced() -> None:
    folder = SHARED_DATA / "cta-thoracic"
    volume = read_ct(folder / "ct.nii.gz")
    mask = read_labels(folder / "vertebra_T12.nii.gz") > 0
    inner = ndimage.binary_opening(mask, iterations=5)
    body = np.where(inner, 3, np.where(mask, 1, 0)).astype(np.uint8)
    found = detect_contrast(volume, segmentation_from_maps(volume, np.where(mask, 19, 0).astype(np.uint8), body))
    assert found.enhanced and found.aorta_hu is not None and found.aorta_hu > 120.0
