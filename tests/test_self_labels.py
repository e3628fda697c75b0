"""Labels by our own networks: names come from the marks, ribs from bone that begins beside a thoracic vertebra."""

import numpy as np

from analysis.resampling import canonical_view
from analysis.results import Segmentation, VertebraLevel
from analysis.training.annotation import AnnotatedVertebra, Annotation
from analysis.training.self_labels import followed_along_bone, named_by_marks
from analysis.volume import CtVolume, axial_affine

T12, L1 = 19, 20


def mark(level: str, z_mm: float) -> AnnotatedVertebra:
    return AnnotatedVertebra(level, (0.0, 0.0, z_mm), None, None, True, 1.0)


def test_a_vertebra_gets_the_name_of_the_mark_near_it_and_none_without_a_mark() -> None:
    labels = np.zeros((3, 1, 1), np.uint8)
    labels[:2, 0, 0] = (L1, L1 + 1)
    found = tuple(
        VertebraLevel(name, label, 0.5, (1.0, 2.0, z), True)
        for name, label, z in (("L1", L1, 0.0), ("L2", L1 + 1, -33.0))
    )
    segmentation = Segmentation(labels, (labels > 0).astype(np.uint8) * 3, found, (), ())
    annotation = Annotation("volume", "none", (), "", (mark("T12", 0.0), mark("L3", -80.0)))
    named, body = named_by_marks(segmentation, annotation, ())
    assert named.ravel().tolist() == [T12, 0, 0] and body.ravel().tolist() == [3, 0, 0]
    assert not named_by_marks(segmentation, annotation, ("T12",))[0].any()


def test_ribs_are_followed_along_bone_and_a_bright_kidney_is_not_one() -> None:
    shape = (20, 20, 60)
    hu = np.full(shape, 40, np.int16)
    labels, fine, coarse = np.zeros(shape, np.int16), np.zeros(shape, bool), np.zeros(shape, bool)
    labels[8:12, 8:12, 0:6] = T12
    hu[8:12, 8:12, 0:6] = 400
    hu[9:11, 9:11, 6:30] = 400  # a rib, of which the networks know the first half
    fine[9:11, 9:11, 7:18] = True
    hu[2:6, 2:6, 40:50] = 300  # an enhanced kidney that the fine network takes for rib
    fine[2:6, 2:6, 40:50] = True
    view = canonical_view(CtVolume(hu, axial_affine((1.0, 1.0, 1.0), (0.0, 0.0, 0.0))))
    ribs = followed_along_bone((fine, coarse), view, labels, 180.0)
    assert ribs[9:11, 9:11, 7:29].all()
    assert not ribs[2:6, 2:6, 40:50].any() and not ribs[labels > 0].any()
