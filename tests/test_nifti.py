"""Label maps as files: geometry survives, names are checked, nothing half written stays."""

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from node.nifti import body_path, write_nifti


@pytest.mark.parametrize("flip", [1.0, -1.0])
def test_a_voxel_is_found_again_at_its_position_in_the_patient(tmp_path: Path, flip: float) -> None:
    """DICOM and ITK positions are LPS; a reader of the file must get the same millimetres back."""
    affine = np.eye(4)
    affine[:3, :3] = np.array([[0, 0, 0.7 * flip], [0, 0.8, 0], [2.5, 0, 0]])
    affine[:3, 3] = (-120.0, 35.0, 700.0)
    labels = np.zeros((5, 6, 7), np.uint8)
    labels[3, 2, 5] = 20
    path = tmp_path / "labels.nii.gz"
    write_nifti(path, labels, affine)
    image = sitk.ReadImage(str(path))
    found = np.argwhere(sitk.GetArrayFromImage(image) == 20)
    assert len(found) == 1
    position = image.TransformIndexToPhysicalPoint([int(i) for i in found[0][::-1]])
    np.testing.assert_allclose(position, (affine @ [3, 2, 5, 1])[:3], atol=1e-3)


def test_a_name_that_is_no_nifti_name_is_refused_and_nothing_is_left_behind(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="labels.dcm"):
        write_nifti(tmp_path / "labels.dcm", np.zeros((2, 2, 2), np.uint8), np.eye(4))
    write_nifti(tmp_path / "a.nii", np.zeros((2, 2, 2), np.uint8), np.eye(4))
    assert [path.name for path in tmp_path.iterdir()] == ["a.nii"]


@pytest.mark.parametrize(("name", "expected"), [("labels.nii.gz", "labels_body.nii.gz"), ("x.y.nii", "x.y_body.nii")])
def test_the_body_map_stands_beside_the_labels(name: str, expected: str) -> None:
    assert body_path(Path("/out") / name) == Path("/out") / expected
