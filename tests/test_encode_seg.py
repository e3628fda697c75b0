"""SEG: the result's voxels at the scanner's positions, for every geometry that a scanner may send."""

from dataclasses import replace
from io import BytesIO

import highdicom as hd
import numpy as np
import pytest
import SimpleITK as sitk
from pydicom import Dataset, dcmread
from pydicom.uid import ExplicitVRLittleEndian

from analysis.errors import EncodingError
from analysis.results import PatientResult
from node.encode_results import encode_patient_result
from node.encoded import Attachments, EncodingSettings, ObjectKind, SegmentationType
from node.segments import measured_segments
from node.source_headers import positions_mm
from node.sr_checks import walk
from tests.result_builders import CREATED, FLIPPED, OBLIQUE, Grid, affine_of, make_headers, make_result

ATTACHMENTS = Attachments(created=CREATED)
ONLY_SEG = EncodingSettings(objects=frozenset({ObjectKind.SEGMENTATION}))
GRIDS = {
    "ascending": Grid(),
    "descending": Grid(descending=True),
    "flipped": Grid(orientation=FLIPPED),
    "oblique": Grid(orientation=OBLIQUE, descending=True),
    "odd matrix": Grid(n_slices=24, rows=65, columns=67),
    "513 matrix": Grid(n_slices=8, rows=513, columns=513, spacing_mm=(9.0, 0.9, 0.9)),
    "not square": Grid(rows=48, columns=80, spacing_mm=(2.0, 1.1, 1.7)),
}


def encode(headers: tuple[Dataset, ...], result: PatientResult, settings: EncodingSettings = ONLY_SEG) -> Dataset:
    (encoded,) = encode_patient_result(result, headers, settings, attachments=ATTACHMENTS)
    return encoded.dataset


def read_back(ds: Dataset) -> hd.seg.Segmentation:
    buffer = BytesIO()
    ds.save_as(buffer)
    buffer.seek(0)
    return hd.seg.segread(buffer)


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS.keys())
def test_every_voxel_lies_where_the_label_map_has_it_in_patient_space(grid: Grid) -> None:
    headers = make_headers(grid)
    result = make_result(headers)
    segmentation = read_back(encode(headers, result))
    affine = affine_of(headers)
    for number, segment in enumerate(measured_segments(result), start=1):
        volume = segmentation.get_volume(segment_numbers=[number], combine_segments=True)
        found_lps = volume.affine @ np.vstack([np.argwhere(volume.array).T, np.ones(np.count_nonzero(volume.array))])
        found = (np.linalg.inv(affine) @ found_lps)[:3].T
        assert np.abs(found - np.round(found)).max() < 0.01  # on voxel centres of the source
        expected = np.argwhere(segment.mask) + segment.start
        assert {*map(tuple, np.round(found).astype(int))} == {*map(tuple, expected)}, segment.name


def test_world_coordinates_are_those_that_simpleitk_computes_from_the_ct(tmp_path) -> None:
    headers = make_headers(Grid(n_slices=12, rows=48, columns=40, orientation=OBLIQUE))
    result = make_result(headers)
    ct = read_ct_with_simpleitk(headers, tmp_path)
    volume = read_back(encode(headers, result)).get_volume(segment_numbers=[3], combine_segments=True)
    in_ct = np.zeros(sitk.GetArrayViewFromImage(ct).shape, dtype=bool)
    for index in np.argwhere(volume.array):
        point = (volume.affine @ [*index, 1.0])[:3]
        column, row, slice_index = ct.TransformPhysicalPointToIndex(point.tolist())
        in_ct[slice_index, row, column] = True
    voi = measured_segments(result)[2]
    expected = np.zeros_like(in_ct)
    expected[tuple(slice(b, b + n) for b, n in zip(voi.start, voi.mask.shape, strict=True))] = voi.mask
    assert np.array_equal(in_ct, expected)


def test_segments_carry_codes_regions_colours_algorithm_and_tracking() -> None:
    headers = make_headers()
    ds = encode(headers, make_result(headers))
    labels = [item.SegmentLabel for item in ds.SegmentSequence]
    assert labels == [
        "L1 vertebral body", "L2 vertebral body", "L1 trabecular VOI", "L2 trabecular VOI", "L1-L2 trabecular VOI"
    ]
    regions = [item.AnatomicRegionSequence[0].CodeValue for item in ds.SegmentSequence]
    assert regions == ["66794005", "14293000", "66794005", "14293000", "122496007"]
    types = [item.SegmentedPropertyTypeCodeSequence[0].CodeValue for item in ds.SegmentSequence]
    assert types == ["3572006", "3572006", "3138006", "3138006", "3138006"]
    assert len({tuple(item.RecommendedDisplayCIELabValue) for item in ds.SegmentSequence}) == 5
    assert len({item.TrackingUID for item in ds.SegmentSequence}) == 5
    algorithm = ds.SegmentSequence[0].SegmentationAlgorithmIdentificationSequence[0]
    assert algorithm.AlgorithmVersion == "0.1.0"
    assert "ab" * 32 in algorithm.AlgorithmParameters


def test_segmentation_is_binary_uncompressed_and_omits_empty_frames() -> None:
    headers = make_headers()
    result = make_result(headers)
    ds = encode(headers, result)
    assert ds.SegmentationType == "BINARY"
    assert ds.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
    assert ds.NumberOfFrames == sum(len(segment.slices) for segment in measured_segments(result))


def test_every_frame_refers_to_the_slice_that_it_lies_on() -> None:
    headers = make_headers(Grid(descending=True))
    ds = encode(headers, make_result(headers))
    positions = dict(zip((h.SOPInstanceUID for h in headers), positions_mm(headers).tolist(), strict=True))
    for groups in ds.PerFrameFunctionalGroupsSequence:
        source = groups.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        assert positions[source] == pytest.approx(groups.PlanePositionSequence[0].ImagePositionPatient)


def test_posterior_elements_are_not_part_of_the_vertebral_body() -> None:
    headers = make_headers()
    result = make_result(headers)
    assert result.segmentation is not None
    body = measured_segments(result)[0]
    assert body.mask.sum() == np.count_nonzero((result.segmentation.labels == 20) & (result.segmentation.body >= 2))
    assert body.mask.sum() < np.count_nonzero(result.segmentation.labels == 20)


@pytest.mark.parametrize(
    ("levels", "name"), [(("L1", "L2"), "L1-L2"), (("T12", "L1"), "T12+L1"), (("L1", "L3"), "L1+L3")]
)
def test_only_the_union_of_l1_and_l2_is_called_l1_l2(levels: tuple[str, ...], name: str) -> None:
    headers = make_headers()
    ds = encode(headers, make_result(headers, levels))
    assert ds.SegmentSequence[-1].SegmentLabel == f"{name} trabecular VOI"


def test_a_single_vertebra_has_no_union() -> None:
    headers = make_headers()
    ds = encode(headers, make_result(headers, ("L2",)))
    assert [item.SegmentLabel for item in ds.SegmentSequence] == ["L2 vertebral body", "L2 trabecular VOI"]


def test_more_frames_than_a_viewer_shows_go_into_further_series() -> None:
    headers = make_headers()
    result = make_result(headers)
    settings = replace(ONLY_SEG, max_frames_per_segmentation=16)
    parts = [item.dataset for item in encode_patient_result(result, headers, settings, attachments=ATTACHMENTS)]
    assert len(parts) > 1
    assert all(ds.NumberOfFrames <= 16 for ds in parts)
    assert len({ds.SeriesInstanceUID for ds in parts}) == len({ds.SeriesNumber for ds in parts}) == len(parts)
    assert sum(len(ds.SegmentSequence) for ds in parts) == 5


def test_label_map_has_no_background_segment_and_no_union() -> None:
    headers = make_headers()
    settings = replace(ONLY_SEG, segmentation_type=SegmentationType.LABELMAP)
    ds = encode(headers, make_result(headers), settings)
    assert ds.SOPClassUID == "1.2.840.10008.5.1.4.1.1.66.7"
    assert [item.SegmentNumber for item in ds.SegmentSequence] == [1, 2, 3, 4]


def test_other_vertebrae_are_written_only_where_configured() -> None:
    headers = make_headers()
    result = make_result(headers, ("T12", "L1", "L2"))
    two = replace(result, vois=result.vois[1:], vertebrae=result.vertebrae[1:], features=())
    settings = EncodingSettings(objects=ONLY_SEG.objects | {ObjectKind.OTHER_VERTEBRAE})
    kinds = {item.kind: item.dataset for item in encode_patient_result(two, headers, settings)}
    assert [s.SegmentLabel for s in kinds[ObjectKind.OTHER_VERTEBRAE].SegmentSequence] == ["T12 vertebral body"]
    assert {item.kind for item in encode_patient_result(two, headers, ONLY_SEG)} == {ObjectKind.SEGMENTATION}


def test_headers_of_another_series_are_refused() -> None:
    headers = make_headers()
    with pytest.raises(EncodingError, match="not those of the analysed series"):
        encode_patient_result(make_result(headers), make_headers(name="another"), ONLY_SEG)


def test_the_same_inputs_give_the_same_bytes() -> None:
    headers = make_headers()
    first, second = (written(encode(headers, make_result(headers))) for _ in range(2))
    assert first == second


def written(ds: Dataset) -> bytes:
    buffer = BytesIO()
    ds.save_as(buffer)
    return buffer.getvalue()


def read_ct_with_simpleitk(headers: tuple[Dataset, ...], folder) -> sitk.Image:
    """The CT as ITK sees it: files with pixels, read as a series in the order of the headers."""
    names = []
    for index, header in enumerate(headers):
        ds = dcmread(BytesIO(written_ct(header)))
        names.append(str(folder / f"{index}.dcm"))
        ds.save_as(names[-1])
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(names)
    return reader.Execute()


def written_ct(header: Dataset) -> bytes:
    ds = Dataset()
    ds.update({element.tag: element for element in header})
    ds.BitsAllocated = ds.BitsStored = 16
    ds.HighBit, ds.PixelRepresentation, ds.SamplesPerPixel = 15, 1, 1
    ds.PhotometricInterpretation, ds.RescaleSlope, ds.RescaleIntercept = "MONOCHROME2", 1, 0
    ds.PixelData = np.zeros((ds.Rows, ds.Columns), dtype=np.int16).tobytes()
    ds.ensure_file_meta()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    buffer = BytesIO()
    ds.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def test_frames_of_an_enhanced_ct_are_referred_to_by_number() -> None:
    """An enhanced CT is one instance: each SEG frame and outline names it with the frame that it lies on."""
    headers = make_headers()
    for number, ds in enumerate(headers, start=1):
        ds.SOPClassUID, ds.InConcatenationNumber = "1.2.840.10008.5.1.4.1.1.2.1", number
        ds.SOPInstanceUID = "1.2.3.4"
    settings = EncodingSettings(objects=ONLY_SEG.objects | {ObjectKind.MEASUREMENTS})
    seg, report = (item.dataset for item in encode_patient_result(make_result(headers), headers, settings))
    positions = positions_mm(headers)
    for groups in seg.PerFrameFunctionalGroupsSequence:
        source = groups.DerivationImageSequence[0].SourceImageSequence[0]
        assert (source.ReferencedSOPInstanceUID, source.ReferencedSOPClassUID) == ("1.2.3.4", headers[0].SOPClassUID)
        assert positions[source.ReferencedFrameNumber - 1] == pytest.approx(
            groups.PlanePositionSequence[0].ImagePositionPatient
        )
    instances = seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence
    assert [item.ReferencedSOPInstanceUID for item in instances] == ["1.2.3.4"]
    evidence = report.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence
    listed = {item.SeriesInstanceUID: item.ReferencedSOPSequence for item in evidence}
    assert [item.ReferencedSOPInstanceUID for item in listed[headers[0].SeriesInstanceUID]] == ["1.2.3.4"]
    outlines = [item.ContentSequence[0].ReferencedSOPSequence[0] for item in walk(report) if item.ValueType == "SCOORD"]
    assert len({item.ReferencedFrameNumber for item in outlines}) == 3
    assert {item.ReferencedSOPInstanceUID for item in outlines} == {"1.2.3.4"}
