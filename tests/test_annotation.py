"""Marks made by eye: the files are whole, in order and inside their volumes; masks fit between the endplates."""

from pathlib import Path

import numpy as np
import pytest

from analysis.training import annotation as annotation_module
from analysis.training.annotate import bounds_lps_mm, main
from analysis.training.annotation import LEVEL_LABELS, annotation_from_json, annotation_to_json, grow_bodies
from analysis.training.volume_files import read_ct
from analysis.volume import CtVolume, axial_affine
from tests.data import SHARED_DATA, needs_data

FOLDER = Path(annotation_module.__file__).parent / "annotations"
FILES = sorted(FOLDER.glob("*.json"))
IMAGES = {"cta-thoracic": "ct.nii.gz", "abdomen-3mm": "ct.nii.gz", "l3-subregions": "sub-ct_label-22_ct.nii.gz"}


def volume_path(name: str) -> Path:
    return SHARED_DATA / name / IMAGES.get(name, "")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_levels_follow_one_another_downwards_at_plausible_distances(path: Path) -> None:
    annotation = annotation_from_json(path.read_text())
    labels = [LEVEL_LABELS[vertebra.level] for vertebra in annotation.vertebrae if vertebra.level != "S1"]
    assert labels == list(range(labels[0], labels[0] + len(labels)))
    centroids = np.array([vertebra.centroid_lps_mm for vertebra in annotation.vertebrae])
    distances = np.linalg.norm(np.diff(centroids, axis=0), axis=1)
    assert (np.diff(centroids[:, 2]) < 0).all() and distances.min() > 14 and distances.max() < 45


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_file_survives_reading_and_writing(path: Path) -> None:
    annotation = annotation_from_json(path.read_text())
    assert annotation_from_json(annotation_to_json(annotation)) == annotation


@needs_data
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_mark_lies_inside_its_volume_on_bone_or_marrow(path: Path) -> None:
    volume = read_ct(volume_path(path.stem))
    low, high = bounds_lps_mm(volume)
    for vertebra in annotation_from_json(path.read_text()).vertebrae:
        centroid = np.array(vertebra.centroid_lps_mm)
        assert (centroid > low).all() and (centroid < high).all()
        index = volume.to_index(centroid).round().astype(int)
        reach = np.maximum(1, np.round(5.0 / np.array(volume.spacing_mm)).astype(int))
        box = tuple(slice(max(0, i - r), i + r + 1) for i, r in zip(index, reach, strict=True))
        assert -50 < volume.hu[box].mean() < 500


def test_a_grown_body_fills_the_space_between_its_endplates() -> None:
    annotation = annotation_from_json((FOLDER / "acrin-flt-001.json").read_text())
    one = type(annotation)(
        **{**_fields(annotation), "vertebrae": tuple(v for v in annotation.vertebrae if v.level == "L2")}
    )
    vertebra = one.vertebrae[0]
    origin = tuple(c - 45.0 for c in vertebra.centroid_lps_mm)
    volume = CtVolume(np.zeros((60, 60, 60), np.int16), axial_affine((1.5, 1.5, 1.5), origin))
    labels = grow_bodies(one, volume)
    heights = volume.to_lps_mm(np.argwhere(labels == LEVEL_LABELS["L2"]).astype(float))[:, 2]
    assert heights.max() == pytest.approx(vertebra.upper_endplate_lps_mm[2], abs=2.0)
    assert heights.min() == pytest.approx(vertebra.lower_endplate_lps_mm[2], abs=2.0)
    assert 25 < (labels > 0).sum() * 1.5**3 / 1000 < 50  # millilitres: an L2 body


def _fields(annotation: object) -> dict[str, object]:
    return {name: getattr(annotation, name) for name in annotation.__slots__}


@needs_data
def test_the_check_command_draws_the_marks(tmp_path: Path) -> None:
    out = tmp_path / "check.png"
    assert main(["check", str(FOLDER / "crlm-1004.json"), str(volume_path("crlm-1004")), "--out", str(out)]) == 0
    assert out.stat().st_size > 20_000
