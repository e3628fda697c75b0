"""Does a written SEG show the result's voxels at the scanner's positions? Read back from the object, not the encoder.

A wrong order of slices is silent in every viewer, so each frame's position is compared with the slice it refers to, and
each VOI's centre in patient space with the centre that the analysis stated.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from analysis.results import PatientResult
from node.frame_references import frame_number
from node.segments import Segment, SegmentKind, measured_segments, other_segments
from node.source_headers import positions_mm, to_lps_mm

#: Positions are decimal strings; they are copied, so any difference beyond rounding is wrong.
_POSITION_TOLERANCE_MM = 1e-3
#: The segment's centre and the VOI's stated centre may differ by excluded voxels and by the grid.
_CENTRE_TOLERANCE_MM = 3.0


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """One frame of a BINARY or LABELMAP SEG: which segment (0 = label map), which source slice, which pixels."""

    segment_number: int
    slice_index: int
    position_mm: NDArray[np.float64]
    pixels: NDArray[np.uint8]


def check_segmentation(ds: Dataset, headers: Sequence[Dataset], result: PatientResult) -> tuple[str, ...]:
    """What is wrong with one SEG; empty when nothing is."""
    problems = [*_header_problems(ds, headers)]
    try:
        frames = list(read_frames(ds, headers))
    except KeyError as error:
        return (*problems, f"SEG refers to an image that is not in the source series: {error.args[0]}")
    positions = positions_mm(headers)
    if any(np.abs(f.position_mm - positions[f.slice_index]).max() > _POSITION_TOLERANCE_MM for f in frames):
        problems.append("a SEG frame lies elsewhere than the source slice that it refers to")
    expected = {segment.name: segment for segment in (*measured_segments(result), *other_segments(result))}
    for item in ds.SegmentSequence:
        if item.SegmentLabel not in expected:
            problems.append(f"SEG holds segment {item.SegmentLabel!r}, which the result does not have")
        else:
            segment = expected[item.SegmentLabel]
            found = _pixels_of(int(item.SegmentNumber), frames)
            if ds.SegmentationType == "BINARY" and not _same_voxels(segment, found):
                problems.append(f"the voxels of segment {segment.name!r} are not those of the result")
            problems.extend(_place_problems(segment, found, result, headers))
    return tuple(problems)


def read_frames(ds: Dataset, headers: Sequence[Dataset]) -> Iterator[Frame]:
    """Frames of a SEG with the index of the source slice that each refers to.

    Raises
    ------
    KeyError : a frame refers to an image that is not among the headers
    """
    index_of = {(str(header.SOPInstanceUID), frame_number(header)): index for index, header in enumerate(headers)}
    pixels, shared = _frame_pixels(ds), ds.SharedFunctionalGroupsSequence[0]
    for frame, groups in zip(pixels, ds.PerFrameFunctionalGroupsSequence, strict=True):
        source = groups.DerivationImageSequence[0].SourceImageSequence[0]
        image = str(source.ReferencedSOPInstanceUID), source.get("ReferencedFrameNumber")
        identification = groups.get("SegmentIdentificationSequence", shared.get("SegmentIdentificationSequence"))
        number = int(identification[0].ReferencedSegmentNumber) if identification else 0
        position = np.asarray(groups.PlanePositionSequence[0].ImagePositionPatient, dtype=np.float64)
        yield Frame(number, index_of[image], position, frame)


def _frame_pixels(ds: Dataset) -> NDArray[np.uint8]:
    """(frames, rows, columns); BINARY frames are packed bit by bit, lowest first, without padding (PS3.5 8.1.1)."""
    shape = (int(ds.NumberOfFrames), int(ds.Rows), int(ds.Columns))
    raw = np.frombuffer(ds.PixelData, dtype=np.uint8)
    if ds.BitsAllocated == 1:
        raw = np.unpackbits(raw, bitorder="little")
    return raw[:int(np.prod(shape))].reshape(shape)


def _header_problems(ds: Dataset, headers: Sequence[Dataset]) -> Iterator[str]:
    source = headers[0]
    if str(ds.ReferencedSeriesSequence[0].SeriesInstanceUID) != str(source.SeriesInstanceUID):
        yield "SEG refers to another series than the analysed one"
    if source.get("FrameOfReferenceUID") and ds.FrameOfReferenceUID != source.FrameOfReferenceUID:
        yield "SEG has another Frame of Reference UID than the source series"
    if (ds.Rows, ds.Columns) != (source.Rows, source.Columns):
        yield f"SEG matrix is {ds.Rows} x {ds.Columns}, the source's is {source.Rows} x {source.Columns}"
    shared = ds.SharedFunctionalGroupsSequence[0]
    orientation = shared.PlaneOrientationSequence[0].ImageOrientationPatient
    if not np.allclose(np.asarray(orientation, float), np.asarray(source.ImageOrientationPatient, float), atol=1e-5):
        yield "SEG has another orientation than the source series"
    spacing = shared.PixelMeasuresSequence[0].PixelSpacing
    if not np.allclose(np.asarray(spacing, float), np.asarray(source.PixelSpacing, float), rtol=1e-6):
        yield "SEG has another pixel spacing than the source series"


def _pixels_of(number: int, frames: list[Frame]) -> dict[int, NDArray[np.uint8]]:
    """Source slice -> pixels of one segment, 0 and 1; a frame of a label map (segment 0) holds several."""
    return {
        frame.slice_index: frame.pixels if frame.segment_number else (frame.pixels == number).astype(np.uint8)
        for frame in frames if frame.segment_number in (0, number)
    }


def _place_problems(
    segment: Segment, found: dict[int, NDArray[np.uint8]], result: PatientResult, headers: Sequence[Dataset]
) -> Iterator[str]:
    if segment.kind is SegmentKind.VOI and len(segment.levels) == 1:
        stated = next(voi.centre_lps_mm for voi in result.vois if voi.level == segment.levels[0])
        distance_mm = float(np.linalg.norm(_centre_lps_mm(found, headers) - np.asarray(stated)))
        tolerance_mm = _CENTRE_TOLERANCE_MM + float(max(headers[0].PixelSpacing))
        if distance_mm > tolerance_mm:
            yield (f"segment {segment.name!r} lies {distance_mm:.1f} mm from the VOI centre of the analysis; at most "
                   f"{tolerance_mm:.1f} mm expected")


def _same_voxels(segment: Segment, found: dict[int, NDArray[np.uint8]]) -> bool:
    """Slice for slice: inside the segment's box equal, outside it empty."""
    if sorted(found) != segment.slices.tolist():
        return False
    (_, row, column), (_, n_rows, n_columns) = segment.start, segment.mask.shape
    rows, columns = slice(row, row + n_rows), slice(column, column + n_columns)
    for index, pixels in found.items():
        expected = segment.mask[index - segment.start[0]]
        if np.count_nonzero(pixels) != np.count_nonzero(expected) or (pixels[rows, columns] != expected).any():
            return False
    return True


def _centre_lps_mm(found: dict[int, NDArray[np.uint8]], headers: Sequence[Dataset]) -> NDArray[np.float64]:
    """Mean position of all voxels, through the headers of the slices that the frames refer to."""
    total, count = np.zeros(3), 0
    for index, pixels in found.items():
        rows, columns = np.nonzero(pixels)
        if len(rows):
            centre = np.array([[columns.mean(), rows.mean()]])
            total += len(rows) * to_lps_mm(headers[index], centre)[0]
            count += len(rows)
    return total / max(count, 1)
