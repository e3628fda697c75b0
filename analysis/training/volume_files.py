"""Volumes and label maps in files for training and studies: DICOM folders, NIfTI, NRRD, through SimpleITK.

Convention: (slices, rows, columns) with the affine of `analysis.volume` to LPS millimetres, which is ITK's own space.
"""

from pathlib import Path

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from analysis.volume import CtVolume


def read_image(path: Path) -> sitk.Image:
    """A folder is read as one DICOM series (the largest in it), anything else by its file format."""
    if not path.is_dir():
        return sitk.ReadImage(str(path))
    reader = sitk.ImageSeriesReader()
    series = [reader.GetGDCMSeriesFileNames(str(path), uid) for uid in reader.GetGDCMSeriesIDs(str(path))]
    reader.SetFileNames(max(series, key=len))
    return reader.Execute()


def image_affine(image: sitk.Image) -> NDArray[np.float64]:
    """Index (slice, row, column, 1) -> LPS mm of an ITK image."""
    affine = np.eye(4)
    direction = np.array(image.GetDirection()).reshape(3, 3)
    affine[:3, :3] = (direction * np.array(image.GetSpacing()))[:, ::-1]
    affine[:3, 3] = image.GetOrigin()
    return affine


def read_ct(path: Path) -> CtVolume:
    """CT numbers as int16; values below -1024 (padding) become -1024."""
    image = read_image(path)
    hu = np.clip(sitk.GetArrayFromImage(image), -1024, 32767).astype(np.int16)
    return CtVolume(hu, image_affine(image))


def read_labels(path: Path) -> NDArray[np.uint8]:
    """A label map as uint8, (slices, rows, columns) in the file's own orientation."""
    labels: NDArray[np.uint8] = sitk.GetArrayFromImage(read_image(path)).astype(np.uint8)
    return labels
