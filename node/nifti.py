"""CT from NIfTI files; label maps as NIfTI in the geometry of their series, under a temporary name, then renamed."""

from pathlib import Path

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from analysis.errors import ConfigError, UnusableSeriesError
from analysis.volume import CtVolume

SUFFIXES = (".nii.gz", ".nii")
AIR_HU = -1024.0


def is_nifti(path: Path) -> bool:
    return path.name.lower().endswith(SUFFIXES)


def read_nifti(path: Path) -> CtVolume:
    """A CT in HU; ITK reads NIfTI's RAS as LPS. What is no number, and all below air, becomes air.

    Raises
    ------
    UnusableSeriesError : PIXELS_UNREADABLE, no volume of three dimensions
    """
    try:
        image = sitk.ReadImage(str(path), sitk.sitkFloat32)
    except RuntimeError as error:
        raise UnusableSeriesError("PIXELS_UNREADABLE", f"{path.name} is no scalar NIfTI volume: {error}") from error
    if image.GetDimension() == 4 and image.GetSize()[3] == 1:
        image = image[:, :, :, 0]
    if image.GetDimension() != 3:
        found = f"{image.GetDimension()} dimensions found in {path.name}; 3 expected"
        raise UnusableSeriesError("PIXELS_UNREADABLE", found)
    affine = np.eye(4)
    affine[:3, :3] = (np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing())[:, ::-1]
    affine[:3, 3] = image.GetOrigin()
    hu = np.nan_to_num(sitk.GetArrayFromImage(image), nan=AIR_HU)
    return CtVolume(np.maximum(hu, np.float32(AIR_HU)), affine)


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


def labels_path(out: Path) -> Path:
    """Where the label map goes: the file named, or labels.nii.gz in the folder named.

    Raises
    ------
    ConfigError : a file name of another format
    """
    if out.suffix and not out.name.endswith(SUFFIXES) and not out.is_dir():
        raise ConfigError(f"--out {out} found; a name that ends in .nii.gz or .nii, or a folder, expected")
    return out if out.name.endswith(SUFFIXES) else out / "labels.nii.gz"


def body_path(labels_path: Path) -> Path:
    """labels.nii.gz -> labels_body.nii.gz, in the same folder."""
    for suffix in SUFFIXES:
        if labels_path.name.endswith(suffix):
            return labels_path.with_name(labels_path.name.removesuffix(suffix) + "_body" + suffix)
    return labels_path.with_name(labels_path.name + "_body.nii.gz")
