"""Result -> DICOM Segmentation (PS3.3 A.51; C.8.20) on the grid of the source series.

BINARY, uncompressed, empty frames omitted: what viewers show and readers decode. Segments may overlap in it. Only the
slices that hold segments are handed to highdicom, which bounds the memory. One object holds at most
`max_frames_per_segmentation` frames; more segments go into further objects, each in its own series.
"""

from dataclasses import dataclass

import highdicom as hd
import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from analysis.results import PatientResult
from node import codes
from node.encoded import EncodedObject, ObjectIdentity, ObjectKind, SegmentationType
from node.encoding_task import EncodingTask
from node.frame_references import name_frames
from node.result_uids import derive_uid
from node.segments import Segment, SegmentKind, measured_segments, other_segments
from node.source_headers import ascii_text, finish, pixel_measures

# CIELab (L 0..100, a and b -128..127): bodies in cool, VOIs in warm colours, distinct in grey scale too
_BODY_COLOURS = ((70.0, -20.0, -30.0), (60.0, -40.0, 10.0))
_VOI_COLOURS = ((75.0, 20.0, 70.0), (65.0, 50.0, 40.0))
_UNION_COLOUR = (55.0, 70.0, -30.0)
_OTHER_COLOUR = (80.0, 0.0, 0.0)


@dataclass(frozen=True, slots=True)
class SegmentReference:
    """Where a segment can be found: what the measurement SR refers to."""

    name: str
    levels: tuple[str, ...]
    kind: SegmentKind
    sop_class_uid: str
    sop_instance_uid: str
    number: int


def encode_segmentation(
    result: PatientResult, task: EncodingTask
) -> tuple[tuple[EncodedObject, ...], tuple[SegmentReference, ...]]:
    """Segmentation objects of a reported result, and where each measured segment lies in them."""
    as_label_map = task.settings.segmentation_type is SegmentationType.LABELMAP
    segments = measured_segments(result)
    if as_label_map:
        segments = _without_overlap(segments)
    parts = _split(segments, task.settings.max_frames_per_segmentation)
    identities = [task.identity(ObjectKind.SEGMENTATION, "QCT SEG", part) for part in range(len(parts))]
    objects = tuple(_encode(part, result, task, identity) for part, identity in zip(parts, identities, strict=True))
    references = tuple(
        SegmentReference(segment.name, segment.levels, segment.kind, item.dataset.SOPClassUID,
                         item.dataset.SOPInstanceUID, number)
        for item, part in zip(objects, parts, strict=True) for number, segment in enumerate(part, start=1)
    )
    return objects, references


def encode_other_vertebrae(result: PatientResult, task: EncodingTask) -> tuple[EncodedObject, ...]:
    """Segmentation of the vertebrae that were found but not measured; empty when there are none."""
    parts = _split(other_segments(result), task.settings.max_frames_per_segmentation)
    return tuple(
        _encode(part, result, task, task.identity(ObjectKind.OTHER_VERTEBRAE, "QCT vertebrae", index))
        for index, part in enumerate(parts)
    )


def _encode(
    segments: tuple[Segment, ...], result: PatientResult, task: EncodingTask, identity: ObjectIdentity
) -> EncodedObject:
    slices = np.unique(np.concatenate([segment.slices for segment in segments]))
    settings = task.settings
    images = [task.images[index] for index in slices]
    ds = hd.seg.Segmentation(
        source_images=_with_identity(images, task),
        pixel_array=_pixels(segments, slices, task),
        segmentation_type=settings.segmentation_type.value,
        segment_descriptions=[
            _description(number, segment, result, task) for number, segment in enumerate(segments, start=1)
        ],
        series_instance_uid=identity.series_instance_uid, series_number=identity.series_number,
        sop_instance_uid=identity.sop_instance_uid, instance_number=1,
        manufacturer=ascii_text(settings.manufacturer), manufacturer_model_name=ascii_text(settings.model_name),
        software_versions=settings.software_version, device_serial_number=settings.device_serial_number,
        pixel_measures=pixel_measures(task.headers), omit_empty_frames=True, content_label="QCT",
        content_description=identity.description, series_description=identity.description,
        coding_schemes=codes.coding_schemes(settings.private_scheme_organisation),
    )
    _settle(ds, task, identity)
    name_frames(ds, task.headers)
    return EncodedObject(identity.kind, finish(ds, task.headers[0], identity))


def _settle(ds: hd.seg.Segmentation, task: EncodingTask, identity: ObjectIdentity) -> None:
    """Replace the random dimension UID, and drop the background item that makes viewers shift label map colours."""
    uid = derive_uid(task.settings.uid_root, ("dimensions", identity.sop_instance_uid))
    for item in (*ds.DimensionOrganizationSequence, *ds.DimensionIndexSequence):
        item.DimensionOrganizationUID = uid
    if ds.SegmentSequence[0].SegmentNumber == 0:  # cornerstone3D pull request 2882
        del ds.SegmentSequence[0]


def _with_identity(images: list[Dataset], task: EncodingTask) -> list[Dataset]:
    """highdicom reads patient and study from the first image given, whichever slice that is."""
    carrier = Dataset()
    carrier.update(task.images[0])
    carrier.update(images[0])
    return [carrier, *images[1:]]


def _pixels(segments: tuple[Segment, ...], slices: NDArray[np.int64], task: EncodingTask) -> NDArray[np.uint8]:
    """(slices, rows, columns, segments) of 0 and 1, or a label map (slices, rows, columns), of these slices."""
    grid = (len(slices), int(task.headers[0].Rows), int(task.headers[0].Columns))
    if task.settings.segmentation_type is SegmentationType.LABELMAP or not _overlapping(segments):
        labels = np.zeros(grid, dtype=np.uint8)
        for number, segment in enumerate(segments, start=1):
            segment.paint(labels, slices, number)
        return labels
    stacked = np.zeros((*grid, len(segments)), dtype=np.uint8)
    for index, segment in enumerate(segments):
        segment.paint(stacked[..., index], slices)
    return stacked


def _overlapping(segments: tuple[Segment, ...]) -> bool:
    return len({segment.kind for segment in segments}) > 1 or any(len(segment.levels) > 1 for segment in segments)


def _without_overlap(segments: tuple[Segment, ...]) -> tuple[Segment, ...]:
    """For a label map: bodies first so that VOIs are painted over them; no union."""
    return tuple(segment for segment in segments if len(segment.levels) == 1)


def _split(segments: tuple[Segment, ...], max_frames: int) -> list[tuple[Segment, ...]]:
    """Segments in order, in as few objects as the frame budget allows."""
    parts: list[tuple[Segment, ...]] = []
    room = 0
    for segment in segments:
        n_frames = len(segment.slices)
        if not parts or n_frames > room:
            parts.append(())
            room = max_frames
        parts[-1] += (segment,)
        room -= n_frames
    return parts


def _description(
    number: int, segment: Segment, result: PatientResult, task: EncodingTask
) -> hd.seg.SegmentDescription:
    is_voi = segment.kind is SegmentKind.VOI
    return hd.seg.SegmentDescription(
        segment_number=number, segment_label=segment.name,
        segmented_property_category=codes.TISSUE if is_voi else codes.ANATOMICAL_STRUCTURE,
        segmented_property_type=codes.BONE_TISSUE if is_voi else codes.VERTEBRAL_BODY,
        algorithm_type="AUTOMATIC", algorithm_identification=_algorithm(result, task),
        tracking_uid=task.tracking_uid(segment.name), tracking_id=segment.name,
        anatomic_regions=[codes.region_code(segment.levels)],
        display_color=hd.color.CIELabColor(*_colour(segment, result)),
    )


def _algorithm(result: PatientResult, task: EncodingTask) -> hd.AlgorithmIdentificationSequence:
    parameters = {f"{model.name} {model.version}": model.sha256 for model in result.models}
    return hd.AlgorithmIdentificationSequence(
        name=task.settings.model_name, family=codes.ARTIFICIAL_INTELLIGENCE, version=result.software_version,
        source=ascii_text(task.settings.manufacturer), parameters=parameters or None,
    )


def _colour(segment: Segment, result: PatientResult) -> tuple[float, float, float]:
    measured = [voi.level for voi in result.vois]
    if len(segment.levels) > 1:
        return _UNION_COLOUR
    if segment.levels[0] not in measured:
        return _OTHER_COLOUR
    colours = _VOI_COLOURS if segment.kind is SegmentKind.VOI else _BODY_COLOURS
    return colours[measured.index(segment.levels[0]) % len(colours)]
