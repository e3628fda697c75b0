"""Label maps as NIfTI files in the geometry of their series; written to a temporary name, then renamed."""

from pathlib import Path

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

SUFFIXES = (".nii.gz", ".nii")


def write_nifti(path: Path, labels: NDArray[np.uint8], affine: NDArray[np.float64]) -> None:
    """Write an array (slices, rows, columns) with its affine to LPS mm; ITK keeps LPS and converts to NIfTI's RAS.

    Raises
    ------
    ValueError : the name does not end in .nii.gz or .nii
    """
    suffix = next((s for s in SUFFIXES if path.name.endswith(s)), None)
    if suffix is None:
        raise ValueError(f"{path.name} is no NIfTI name; expected one that ends in .nii.gz or .nii")
    temporary = path.with_name(path.name.removesuffix(suffix) + ".part" + suffix)
    sitk.WriteImage(to_image(labels, affine), str(temporary), useCompression=True)
    temporary.replace(path)


def to_image(labels: NDArray[np.uint8], affine: NDArray[np.float64]) -> sitk.Image:
    """An ITK image whose index order is (column, row, slice)."""
    image = sitk.GetImageFromArray(labels)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    direction = (affine[:3, :3] / spacing)[:, ::-1]
    image.SetSpacing([float(s) for s in spacing[::-1]])
    image.SetDirection([float(d) for d in direction.ravel()])
    image.SetOrigin([float(o) for o in affine[:3, 3]])
    return image


def body_path(labels_path: Path) -> Path:
    """labels.nii.gz -> labels_body.nii.gz, in the same folder."""
    for suffix in SUFFIXES:
        if labels_path.name.endswith(suffix):
            return labels_path.with_name(labels_path.name.removesuffix(suffix) + "_body" + suffix)
    return labels_path.with_name(labels_path.name + "_body.nii.gz")
