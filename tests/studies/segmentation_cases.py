"""Real volumes with what is known of them: label maps where they exist, marks by eye for all."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from analysis.training import annotation as annotation_module
from analysis.training.annotation import Annotation, annotation_from_json
from analysis.training.volume_files import read_ct, read_labels
from analysis.volume import CtVolume
from tests.data import SHARED_DATA

ANNOTATIONS = Path(annotation_module.__file__).parent / "annotations"
NAMES = ("abdomen-3mm", "cta-thoracic", "l3-subregions", "crlm-1004", "lidc-0001", "acrin-flt-001")


@dataclass(frozen=True, slots=True, eq=False)
class RealCase:
    """A volume with its truth.

    vertebrae, bodies, cancellous : VerSe-numbered maps with the levels that each of them covers; an absent level is
    unknown, not background
    level_sure : the names of the marks are beyond doubt
    """

    name: str
    volume: CtVolume
    annotation: Annotation
    vertebrae: tuple[NDArray[np.uint8], tuple[int, ...]] | None = None
    bodies: tuple[NDArray[np.uint8], tuple[int, ...]] | None = None
    cancellous: tuple[NDArray[np.uint8], tuple[int, ...]] | None = None

    @property
    def level_sure(self) -> bool:
        return min(vertebra.level_confidence for vertebra in self.annotation.vertebrae) >= 0.9


def load_case(name: str) -> RealCase:
    folder = SHARED_DATA / name
    annotation = annotation_from_json((ANNOTATIONS / f"{name}.json").read_text())
    if name == "abdomen-3mm":
        return _abdomen(folder, annotation)
    if name == "cta-thoracic":
        twelfth = read_labels(folder / "vertebra_T12.nii.gz") * np.uint8(19)
        return RealCase(name, read_ct(folder / "ct.nii.gz"), annotation, (twelfth, (19,)))
    if name == "l3-subregions":
        return _third_lumbar(folder, annotation)
    return RealCase(name, read_ct(folder), annotation)


def _abdomen(folder: Path, annotation: Annotation) -> RealCase:
    """Whole vertebrae L1 to L5 (27 = L5 ... 31 = L1; T12 is cut by the edge), bodies by level in VerSe numbering."""
    total, bodies = read_labels(folder / "labels.nii.gz"), read_labels(folder / "vertebra_bodies_by_level.nii.gz")
    table = np.zeros(256, np.uint8)
    table[27:32] = (24, 23, 22, 21, 20)
    lumbar = (20, 21, 22, 23, 24)
    return RealCase(
        annotation.volume, read_ct(folder / "ct.nii.gz"), annotation, (table[total], lumbar), (bodies, lumbar)
    )


def _third_lumbar(folder: Path, annotation: Annotation) -> RealCase:
    """L3 whole; subregions 49 body cortex and 50 body cancellous bone."""
    vertebrae = read_labels(folder / "sub-ct_seg-vert_label-22_msk.nii.gz")
    parts = read_labels(folder / "sub-ct_seg-subreg_label-22_msk.nii.gz")
    body = np.where(np.isin(parts, (49, 50)), vertebrae, 0).astype(np.uint8)
    cancellous = np.where(parts == 50, vertebrae, 0).astype(np.uint8)
    volume = read_ct(folder / "sub-ct_label-22_ct.nii.gz")
    return RealCase(annotation.volume, volume, annotation, (vertebrae, (22,)), (body, (22,)), (cancellous, (22,)))
