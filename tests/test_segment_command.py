"""`qct-node segment` on what outsiders have: folders with other objects in them, single files, NIfTI volumes."""

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from numpy.typing import NDArray
from pydicom import Dataset
from typer.testing import CliRunner

from analysis.results import Segmentation
from analysis.volume import CtVolume
from node import offline
from node.commands import app
from tests.synthetic import ramp_volume, write_ct

LEVEL = 20


@pytest.fixture(autouse=True)
def bright_half(monkeypatch: pytest.MonkeyPatch) -> None:
    """Instead of the networks: the brighter half of the volume is one vertebra."""

    def outline(backend: str, volume: CtVolume, *_: object) -> Segmentation:
        labels = (volume.hu > np.median(volume.hu)).astype(np.uint8) * LEVEL
        return Segmentation(labels, labels // LEVEL, (), (), ())

    monkeypatch.setattr(offline, "segment_with", outline)


def segment(source: Path, out: Path, exit_code: int = 0) -> str:
    done = CliRunner().invoke(app, ["segment", str(source), "--out", str(out)])
    assert done.exit_code == exit_code, done.output + repr(done.exception)
    return done.output


def labels_of(volume: CtVolume) -> NDArray[np.bool_]:
    return np.asarray(volume.hu > np.median(volume.hu))


@pytest.mark.parametrize("orientation", ["LPS", "RAS", "SAL"])
def test_a_nifti_volume_gives_labels_in_its_own_geometry(orientation: str, tmp_path: Path) -> None:
    image = sitk.GetImageFromArray(ramp_volume().hu)
    image.SetSpacing((0.8, 0.9, 2.5))
    image.SetOrigin((-10.0, 20.0, -300.0))
    image = sitk.DICOMOrient(image, orientation)
    sitk.WriteImage(image, str(tmp_path / "ct.nii.gz"))
    segment(tmp_path / "ct.nii.gz", tmp_path / "labels.nii.gz")
    labels = sitk.ReadImage(str(tmp_path / "labels.nii.gz"))
    hu = sitk.GetArrayFromImage(image)
    assert np.array_equal(sitk.GetArrayFromImage(labels) == LEVEL, hu > np.median(hu))
    for corner in [(0, 0, 0), tuple(size - 1 for size in image.GetSize())]:
        wanted = image.TransformIndexToPhysicalPoint(corner)
        np.testing.assert_allclose(labels.TransformIndexToPhysicalPoint(corner), wanted, atol=1e-3)


def test_a_file_that_is_no_volume_is_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "ct.nii.gz").write_bytes(b"nothing")
    assert "PIXELS_UNREADABLE" in segment(tmp_path / "ct.nii.gz", tmp_path / "labels.nii.gz", exit_code=3)


def test_the_ct_is_outlined_and_not_the_longer_reformation_or_label_map_beside_it(tmp_path: Path) -> None:
    def reformatted(index: int, ds: Dataset) -> None:
        ds.ImageType = ["DERIVED", "SECONDARY", "MPR"]

    def label_map(index: int, ds: Dataset) -> None:
        ds.Modality, ds.SOPClassUID = "SEG", "1.2.840.10008.5.1.4.1.1.66.4"

    study = tmp_path / "study"
    write_ct(study / "ct", ramp_volume((12, 16, 24)))
    write_ct(study / "mpr", ramp_volume((20, 8, 8)), reformatted)
    write_ct(study / "seg", ramp_volume((30, 8, 8)), label_map)
    segment(study, tmp_path / "out")
    labels = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "out" / "labels.nii.gz")))
    assert np.array_equal(labels == LEVEL, labels_of(ramp_volume((12, 16, 24))))


def test_files_without_an_image_and_without_uids_do_no_harm(tmp_path: Path) -> None:
    folder = tmp_path / "ct"
    write_ct(folder, ramp_volume((12, 16, 24)))
    (folder / "DICOMDIR").write_bytes(bytes(128) + b"DICM")
    (folder / "empty.dcm").write_bytes(b"")
    (folder / "readme.txt").write_text("a CT")
    segment(folder, tmp_path / "labels.nii.gz")


def test_what_would_forbid_a_density_is_said_and_written(tmp_path: Path) -> None:
    write_ct(tmp_path / "ct", change=lambda i, ds: setattr(ds, "RescaleType", "US"))
    assert "NOT_HU" in segment(tmp_path / "ct", tmp_path / "labels.nii.gz")
    report = json.loads((tmp_path / "segment.json").read_text())
    assert [flag["code"] for flag in report["flags"]] == ["NOT_HU"]


def test_a_missing_source_and_a_wrong_file_name_are_usage_errors(tmp_path: Path) -> None:
    write_ct(tmp_path / "ct")
    segment(tmp_path / "absent", tmp_path / "labels.nii.gz", exit_code=2)
    assert ".nii.gz" in segment(tmp_path / "ct", tmp_path / "labels.nrrd", exit_code=2)
