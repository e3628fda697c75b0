"""References to frames of an enhanced multi-frame CT.

The series reader splits such an image into slices that share one SOP Instance UID and say their frame number in
In-concatenation Number. highdicom takes one data set per slice, so it gets stand-in UIDs; here they are replaced by the
real instance with its Referenced Frame Number (PS3.3 10.3), and lists of instances name the instance once.
"""

from collections.abc import Mapping, Sequence

from pydicom import Dataset
from pydicom.sequence import Sequence as DicomSequence
from pydicom.uid import CTImageStorage, EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage

from node.result_uids import derive_uid

MULTI_FRAME_CLASSES = (EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage)
#: Sequences that list instances as a whole, without frames.
_INSTANCE_LISTS = frozenset({"ReferencedInstanceSequence"})


def frame_number(header: Dataset) -> int | None:
    """Which frame of its instance a slice is; None for a classic, single-frame image."""
    if header.SOPClassUID not in MULTI_FRAME_CLASSES or "InConcatenationNumber" not in header:
        return None
    return int(header.InConcatenationNumber)


def stand_in(header: Dataset) -> tuple[str, str]:
    """(SOP Class UID, SOP Instance UID) by which highdicom knows the slice; the real ones for a classic image."""
    number = frame_number(header)
    if number is None:
        return str(header.SOPClassUID), str(header.SOPInstanceUID)
    return str(CTImageStorage), derive_uid("2.25", ("frame", str(header.SOPInstanceUID), str(number)))


def name_frames(ds: Dataset, headers: Sequence[Dataset]) -> None:
    """Replace every stand-in below `ds` by the instance and frame that it stands for."""
    real = {stand_in(header)[1]: header for header in headers if frame_number(header) is not None}
    if real:
        _replace(ds, real, in_list=False)


def _replace(ds: Dataset, real: Mapping[str, Dataset], *, in_list: bool) -> None:
    for element in ds:
        if element.VR != "SQ":
            continue
        listed = element.keyword in _INSTANCE_LISTS or (in_list and element.keyword == "ReferencedSOPSequence")
        for item in element.value:
            _name_instance(item, real, with_frame=not listed)
            _replace(item, real, in_list=element.keyword == "ReferencedSeriesSequence")
        if listed:
            once = {str(item.ReferencedSOPInstanceUID): item for item in reversed(list(element.value))}
            element.value = DicomSequence(reversed(list(once.values())))


def _name_instance(item: Dataset, real: Mapping[str, Dataset], *, with_frame: bool) -> None:
    header = real.get(str(item.get("ReferencedSOPInstanceUID", "")))
    if header is None:
        return
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = header.SOPClassUID, header.SOPInstanceUID
    if with_frame:
        item.ReferencedFrameNumber = frame_number(header)
