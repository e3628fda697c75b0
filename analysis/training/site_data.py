"""A site's own labelled CT: folders of NIfTI pairs or of DICOM with a DICOM SEG.

Layouts, looked for in every folder given and in its direct subfolders:
    ct.nii.gz + labels.nii.gz [+ vertebra_bodies_by_level.nii.gz, or labels_body.nii.gz as `qct-node segment` writes it]
                              [+ labels_ribs.nii.gz]
    <name>_ct.nii.gz + <name>*seg-vert*_msk.nii.gz [+ *seg-subreg*_msk.nii.gz]      (VerSe, TPTBox)
    a CT series and one DICOM SEG whose segment labels name the vertebrae ("L1", "vertebra_L1", "T12 vertebra", ...)
Numbers are VerSe's, or TotalSegmentator's when they increase toward the head.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pydicom
import SimpleITK as sitk
from numpy.typing import NDArray
from scipy import ndimage

from analysis.errors import ModelError
from analysis.training.anatomy import BODY, POSTERIOR, SACRUM
from analysis.training.labelled import RawLabels
from analysis.training.volume_files import image_affine, read_image

# TPTBox subregions: posterior elements 41-48, body cortex 49, body cancellous bone 50.
_SUBREGION_CORTEX, _SUBREGION_CANCELLOUS = 49, 50
# Vertebra voxels this close to a labelled body are neither part: bodies are often outlined tighter than vertebrae.
_RIM_MM = 3.0
_SEG_SOP_CLASSES = ("1.2.840.10008.5.1.4.1.1.66.4",)
_LEVEL_WORD = re.compile(r"(?<![A-Za-z0-9])([CTLS])(\d{1,2})(?![0-9])")


def find_cases(folders: list[Path]) -> list[RawLabels]:
    """Every labelled CT in the folders and their subfolders.

    Raises
    ------
    ModelError : a folder does not exist or nothing labelled is found in it
    """
    cases = []
    for folder in folders:
        if not folder.is_dir():
            raise ModelError(f"training data folder {folder} does not exist")
        places = [folder, *sorted(path for path in folder.iterdir() if path.is_dir())]
        found = [case for place in places for case in _cases_in(place)]
        if not found:
            raise ModelError(f"no labelled CT in {folder}; expected ct.nii.gz + labels.nii.gz, VerSe pairs or CT + SEG")
        cases += found
    return cases


def _cases_in(folder: Path) -> Iterator[RawLabels]:
    if (folder / "ct.nii.gz").exists() and (folder / "labels.nii.gz").exists():
        yield _plain_case(folder)
    for ct in sorted(folder.glob("*_ct.nii.gz")):
        vertebrae = sorted(folder.glob("*seg-vert*_msk.nii.gz"))
        own = [path for path in vertebrae if path.name.split("_")[0] == ct.name.split("_")[0]]
        if own:
            yield _verse_case(ct, own[0])
    if any(folder.glob("*.dcm")):
        yield from _dicom_cases(folder)


def _plain_case(folder: Path) -> RawLabels:
    labels = as_verse(read_image(folder / "labels.nii.gz"))
    bodies_file = folder / "vertebra_bodies_by_level.nii.gz"
    parts = None
    if bodies_file.exists():
        bodies = sitk.GetArrayFromImage(read_image(bodies_file))
        levels = sitk.GetArrayFromImage(labels)
        split = np.isin(levels, np.unique(bodies[bodies > 0]))
        rim = ndimage.binary_dilation(bodies > 0, iterations=max(1, round(_RIM_MM / min(labels.GetSpacing()))))
        parts = _like(np.where(bodies > 0, BODY, np.where(split & (levels > 0) & ~rim, POSTERIOR, 0)), labels)
    elif (folder / "labels_body.nii.gz").exists():  # 1 posterior elements, 2 cortex and 3 cancellous bone of the body
        body_map = sitk.GetArrayFromImage(read_image(folder / "labels_body.nii.gz"))
        parts = _like(np.where(body_map >= 2, BODY, np.where(body_map == 1, POSTERIOR, 0)), labels)
    ribs_file = folder / "labels_ribs.nii.gz"
    ribs = read_image(ribs_file) if ribs_file.exists() else None
    return RawLabels(folder.name, read_image(folder / "ct.nii.gz"), labels, parts, ribs=ribs)


def _verse_case(ct: Path, vertebrae: Path) -> RawLabels:
    labels = as_verse(read_image(vertebrae))
    subregions = [p for p in ct.parent.glob("*seg-subreg*_msk.nii.gz") if p.name.split("_")[0] == ct.name.split("_")[0]]
    if not subregions:
        return RawLabels(ct.name.removesuffix("_ct.nii.gz"), read_image(ct), labels)
    regions = sitk.GetArrayFromImage(read_image(subregions[0]))
    parts = np.where(regions >= _SUBREGION_CORTEX, BODY, np.where(regions > 40, POSTERIOR, 0))
    cortex = np.where(regions == _SUBREGION_CORTEX, 1, np.where(regions == _SUBREGION_CANCELLOUS, 2, 0))
    return RawLabels(ct.parent.name, read_image(ct), labels, _like(parts, labels), _like(cortex, labels))


def _like(array: NDArray[np.generic], image: sitk.Image) -> sitk.Image:
    made = sitk.GetImageFromArray(array.astype(np.uint8))
    made.CopyInformation(image)
    return made


def as_verse(labels: sitk.Image) -> sitk.Image:
    """VerSe numbers as they are; TotalSegmentator's (26 = S1, 27 = L5 ... 50 = C1, upwards) translated."""
    array = sitk.GetArrayFromImage(labels)
    numbers = [int(n) for n in np.unique(array) if 0 < n <= 50]
    affine = image_affine(labels)
    heights = [(affine[:3] @ [*np.argwhere(array == n).mean(axis=0), 1.0])[2] for n in numbers]
    upward = len(numbers) > 1 and np.corrcoef(numbers, heights)[0, 1] > 0
    if upward:
        array = np.where(array > SACRUM, 51 - array.astype(int), array)
    return _like(np.where(array > SACRUM, 0, array), labels)


def _dicom_cases(folder: Path) -> Iterator[RawLabels]:
    for path in sorted(folder.glob("*.dcm")):
        header = pydicom.dcmread(path, stop_before_pixels=True)
        if header.get("SOPClassUID") in _SEG_SOP_CLASSES:
            ct = read_image(folder)
            yield RawLabels(folder.name, ct, _seg_labels(pydicom.dcmread(path), ct))


def level_number(text: str) -> int | None:
    """VerSe number of the level that a segment's label names, None when it names none."""
    match = _LEVEL_WORD.search(text.replace("_", " "))
    if match is None:
        return SACRUM if "sacrum" in text.lower() else None
    letter, number = match.group(1), int(match.group(2))
    if letter == "S":
        return SACRUM
    return {"C": 0, "T": 7, "L": 19}[letter] + number


def _seg_labels(seg: pydicom.Dataset, ct: sitk.Image) -> sitk.Image:
    """Paint the frames of a binary SEG on to the CT's grid by the position of each frame."""
    numbers = {int(item.SegmentNumber): level_number(str(item.SegmentLabel)) for item in seg.SegmentSequence}
    labels = np.zeros(ct.GetSize()[::-1], np.uint8)
    for frame, item in zip(np.atleast_3d(seg.pixel_array), seg.PerFrameFunctionalGroupsSequence, strict=True):
        level = numbers[int(item.SegmentIdentificationSequence[0].ReferencedSegmentNumber)]
        position = item.PlanePositionSequence[0].ImagePositionPatient
        column, row, z = ct.TransformPhysicalPointToContinuousIndex([float(v) for v in position])
        if level is None or not 0 <= round(z) < labels.shape[0]:
            continue
        if max(abs(column), abs(row), abs(z - round(z))) > 0.1 or frame.shape != labels.shape[1:]:
            raise ModelError("the SEG does not lie on the grid of the CT beside it; export it on the source images")
        labels[round(z)][frame > 0] = level
    return _like(labels, ct)
