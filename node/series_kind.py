"""What a received series is - PHANTOM, PATIENT or OTHER - and which series of a patient study is analysed, and why.

Rules read the header only; for phantoms the image content confirms them later (analysis.phantom).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase

from pydicom import Dataset
from pydicom.uid import CTImageStorage, EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage

from analysis.kernels import is_sharp_kernel
from analysis.protocol import ProtocolReference
from storage.ct_header import number, text, values

CT_CLASSES = (CTImageStorage, EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage)
# ImageType values (PS3.3 C.8.2.1.1.1 and vendors' values 3 and 4) of images that are no original axial slices
UNSUITABLE_IMAGE_TYPES = (
    "LOCALIZER", "SCOUT", "MPR", "MIP", "MINIP", "AVERAGE", "PROJECTION IMAGE", "VOLUME", "SCREEN SAVE", "DOSE_INFO",
    "MONOENERGETIC", "MONOCHROMATIC", "VIRTUAL", "IODINE", "VNC", "CSA MPR", "REFORMATTED", "POSDISP", "3D",
    "SECONDARY",
)  # fmt: skip


class SeriesKind(StrEnum):
    PHANTOM = "PHANTOM"
    PATIENT = "PATIENT"
    OTHER = "OTHER"


@dataclass(frozen=True, slots=True)
class SeriesRules:
    """How a phantom scan is recognised and how the series of a patient study is chosen."""

    phantom_patient_id_patterns: tuple[str, ...] = ("QCT-PHANTOM*",)  # shell patterns on PatientID
    phantom_description_patterns: tuple[str, ...] = ("QCT PHANTOM *",)  # shell patterns on SeriesDescription
    phantom_ae_titles: tuple[str, ...] = ()  # calling AE titles that only send phantoms
    phantom_serial_regex: str = r"(\S+)\s*$"  # group 1 of SeriesDescription is the serial
    preferred_slice_thickness_mm: float = 1.25
    minimum_slices: int = 10  # a shorter patient series is not analysed


@dataclass(frozen=True, slots=True)
class SeriesVerdict:
    kind: SeriesKind
    reason: str
    phantom_serial: str | None = None


@dataclass(frozen=True, slots=True)
class SeriesChoice:
    """The chosen series (None: no series is suitable) and why each other one was not taken."""

    series_instance_uid: str | None
    reason: str
    rejected: tuple[tuple[str, str], ...]


def judge_series(ds: Dataset, calling_ae_title: str, rules: SeriesRules) -> SeriesVerdict:
    """Kind of the series that this header belongs to, with the reason in words (no patient data in it)."""
    if ds.get("SOPClassUID", CTImageStorage) not in CT_CLASSES or ds.get("Modality", "CT") != "CT":
        return SeriesVerdict(SeriesKind.OTHER, f"modality {ds.get('Modality', 'unknown')} is not CT")
    if marks := _phantom_marks(ds, calling_ae_title, rules):
        return SeriesVerdict(SeriesKind.PHANTOM, f"recognised by {' and '.join(marks)}", phantom_serial(ds, rules))
    if unsuitable := unsuitable_image_type(ds):
        return SeriesVerdict(SeriesKind.OTHER, unsuitable)
    return SeriesVerdict(SeriesKind.PATIENT, "CT images that no phantom rule names")


def _phantom_marks(ds: Dataset, calling_ae_title: str, rules: SeriesRules) -> list[str]:
    description = text(ds, "SeriesDescription") or ""
    patient_id = text(ds, "PatientID") or ""
    marks = []
    if calling_ae_title in rules.phantom_ae_titles:
        marks.append("calling AE title")
    if any(fnmatchcase(patient_id, pattern) for pattern in rules.phantom_patient_id_patterns):
        marks.append("PatientID pattern")
    if any(fnmatchcase(description, pattern) for pattern in rules.phantom_description_patterns):
        marks.append("SeriesDescription pattern")
    return marks


def phantom_serial(ds: Dataset, rules: SeriesRules) -> str | None:
    match = re.search(rules.phantom_serial_regex, text(ds, "SeriesDescription") or "")
    return match.group(1) if match else None


def unsuitable_image_type(ds: Dataset) -> str | None:
    """Why these images are no original axial CT slices; None when they are."""
    image_type = tuple(str(v).upper() for v in values(ds, "ImageType"))
    joined = "\\".join(image_type)
    if image_type and image_type[0] != "ORIGINAL":
        return f"ImageType {joined} is derived; ORIGINAL\\PRIMARY\\AXIAL expected"
    if found := [name for name in UNSUITABLE_IMAGE_TYPES if any(name in value for value in image_type)]:
        return f"ImageType {joined} ({found[0]}); ORIGINAL\\PRIMARY\\AXIAL expected"
    return None


def choose_series(
    series: Sequence[tuple[Dataset, int]], rules: SeriesRules, protocol: ProtocolReference
) -> SeriesChoice:
    """The series of a patient study to analyse, from one header and the number of slices of each.

    Unenhanced before enhanced, body kernel before sharp, then the thickness closest to the protocol, then most slices.
    """
    suitable, rejected = [], []
    for ds, n_slices in series:
        uid = str(ds.get("SeriesInstanceUID", ""))
        if why := _why_not(ds, n_slices, rules):
            rejected.append((uid, why))
        else:
            suitable.append((_rank(ds, n_slices, rules, protocol), uid))
    if not suitable:
        return SeriesChoice(None, "no series of the study holds original axial CT slices", tuple(rejected))
    suitable.sort()
    best = suitable[0]
    rejected += [
        (uid, f"another series suits better: {_words(best[0])} against {_words(rank)}") for rank, uid in suitable[1:]
    ]
    return SeriesChoice(best[1], _words(best[0]), tuple(rejected))


def _why_not(ds: Dataset, n_slices: int, rules: SeriesRules) -> str | None:
    if (verdict := judge_series(ds, "", rules)).kind is not SeriesKind.PATIENT:
        return verdict.reason
    if n_slices < rules.minimum_slices:
        return f"{n_slices} slices found; at least {rules.minimum_slices} expected"
    return None


def _rank(
    ds: Dataset, n_slices: int, rules: SeriesRules, protocol: ProtocolReference
) -> "tuple[bool, bool, float, int]":
    enhanced = text(ds, "ContrastBolusAgent") is not None
    kernel = "\\".join(str(value) for value in values(ds, "ConvolutionKernel"))
    sharp = is_sharp_kernel(kernel, protocol.refused_kernels, protocol.allowed_kernels)
    thickness_mm = number(ds, "SliceThickness")
    distance_mm = abs((thickness_mm if thickness_mm is not None else 99.0) - rules.preferred_slice_thickness_mm)
    return enhanced, sharp, round(distance_mm, 2), -n_slices


def _words(rank: "tuple[bool, bool, float, int]") -> str:
    enhanced, sharp, distance_mm, n_slices = rank
    return (
        f"{'enhanced' if enhanced else 'unenhanced'}, {'sharp' if sharp else 'body'} kernel, "
        f"{distance_mm} mm from the preferred thickness, {-n_slices} slices"
    )
