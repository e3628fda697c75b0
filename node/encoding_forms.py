"""Other forms of the objects: a PACS that refuses a SOP class gets the same content under the next class it names.

Our measurement SR holds no SCOORD3D, and our readable report no NUM, so that the content is legal in the smaller IODs
(PS3.3 A.35.1 Basic Text, A.35.3 Comprehensive). The SEG has no other form here: a label map needs its own encoding.
"""

from collections.abc import Iterable, Iterator
from copy import deepcopy

from node.destinations import SOP_CLASS_UIDS, Destination
from node.encoded import EncodedObject, MeasurementSrClass, TextSrClass
from node.result_uids import derive_uid

MEASUREMENT_CLASSES = frozenset(SOP_CLASS_UIDS[form] for form in MeasurementSrClass)
TEXT_CLASSES = frozenset(SOP_CLASS_UIDS[form] for form in TextSrClass)


def other_forms(
    objects: Iterable[EncodedObject], destinations: Iterable[Destination], uid_root: str
) -> Iterator[EncodedObject]:
    """Every further form that some destination names, each a new instance in a new series."""
    named = {uid for destination in destinations for uid in destination.preferred_classes()}
    for item in objects:
        written = item.dataset.SOPClassUID
        family = next((classes for classes in (MEASUREMENT_CLASSES, TEXT_CLASSES) if written in classes), frozenset())
        for sop_class_uid in sorted(family & named - {written}):
            yield _as_class(item, sop_class_uid, uid_root)


def _as_class(item: EncodedObject, sop_class_uid: str, uid_root: str) -> EncodedObject:
    ds = deepcopy(item.dataset)
    ds.SOPInstanceUID = derive_uid(uid_root, ("form", ds.SOPInstanceUID, sop_class_uid))
    ds.SeriesInstanceUID = derive_uid(uid_root, ("form series", ds.SeriesInstanceUID, sop_class_uid))
    ds.SOPClassUID = sop_class_uid
    ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID = sop_class_uid, ds.SOPInstanceUID
    return EncodedObject(item.kind, ds)
