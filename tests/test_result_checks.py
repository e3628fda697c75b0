"""Mutations of written objects and of their inputs: each must be caught before anything is sent."""

import copy
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from pydicom import Dataset

from analysis.errors import EncodingError
from analysis.results import Material, PatientResult
from node.encode_results import encode_patient_result
from node.encoded import Attachments, EncodedObject, EncodingSettings, ObjectKind
from node.result_checks import check_objects
from node.sr_checks import walk
from tests.result_builders import CREATED, make_headers, make_result, make_summary

SETTINGS = EncodingSettings()


@pytest.fixture(scope="module")
def headers() -> tuple[Dataset, ...]:
    return make_headers()


@pytest.fixture(scope="module")
def result(headers) -> PatientResult:
    return make_result(headers)


@pytest.fixture(scope="module")
def written(headers, result) -> tuple[EncodedObject, ...]:
    return encode_patient_result(result, headers, SETTINGS, attachments=Attachments(created=CREATED))


def changed(objects, kind: ObjectKind, change: Callable[[Dataset], None]) -> tuple[EncodedObject, ...]:
    """The objects with one of them changed."""
    copies = []
    for item in objects:
        ds = copy.deepcopy(item.dataset) if item.kind is kind else item.dataset
        if item.kind is kind:
            change(ds)
        copies.append(EncodedObject(item.kind, ds))
    return tuple(copies)


def test_untouched_objects_have_no_problem(written, headers, result) -> None:
    assert check_objects(written, headers, result, SETTINGS) == ()


def swap_segment_labels(ds: Dataset) -> None:
    first, second = ds.SegmentSequence[:2]
    first.SegmentLabel, second.SegmentLabel = second.SegmentLabel, first.SegmentLabel


def swap_voi_numbers(ds: Dataset) -> None:
    for groups in ds.PerFrameFunctionalGroupsSequence:
        item = groups.SegmentIdentificationSequence[0]
        item.ReferencedSegmentNumber = {3: 4, 4: 3}.get(item.ReferencedSegmentNumber, item.ReferencedSegmentNumber)


def flip_z_of_positions(ds: Dataset) -> None:
    items = [groups.PlanePositionSequence[0] for groups in ds.PerFrameFunctionalGroupsSequence]
    positions = [item.ImagePositionPatient for item in items]
    for item, position in zip(items, reversed(positions), strict=True):
        item.ImagePositionPatient = position


def flip_z_of_frames(ds: Dataset) -> None:
    size = int(ds.Rows) * int(ds.Columns) // 8
    frames = np.frombuffer(ds.PixelData, np.uint8)[:size * ds.NumberOfFrames].reshape(-1, size)
    ds.PixelData = frames[::-1].tobytes()


def flip_rows(ds: Dataset) -> None:
    shape = (int(ds.NumberOfFrames), int(ds.Rows), int(ds.Columns))
    bits = np.unpackbits(np.frombuffer(ds.PixelData, np.uint8), bitorder="little")[:np.prod(shape)]
    ds.PixelData = np.packbits(bits.reshape(shape)[:, ::-1], bitorder="little").tobytes()


def refer_to_another_series(ds: Dataset) -> None:
    ds.ReferencedSeriesSequence[0].SeriesInstanceUID = "1.2.3"


def refer_to_unknown_image(ds: Dataset) -> None:
    groups = ds.PerFrameFunctionalGroupsSequence[0]
    groups.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID = "1.2.3"


def change_frame_of_reference(ds: Dataset) -> None:
    ds.FrameOfReferenceUID = "1.2.3"


def change_orientation(ds: Dataset) -> None:
    shared = ds.SharedFunctionalGroupsSequence[0]
    shared.PlaneOrientationSequence[0].ImageOrientationPatient = [-1, 0, 0, 0, 1, 0]


@pytest.mark.parametrize(
    "change",
    [swap_segment_labels, swap_voi_numbers, flip_z_of_positions, flip_z_of_frames, flip_rows, refer_to_another_series,
     refer_to_unknown_image, change_frame_of_reference, change_orientation],
)
def test_a_changed_segmentation_is_caught(change, written, headers, result) -> None:
    assert check_objects(changed(written, ObjectKind.SEGMENTATION, change), headers, result, SETTINGS)


def items_named(ds: Dataset, code: str) -> list[Dataset]:
    return [item for item in walk(ds) if "ConceptNameCodeSequence" in item
            and item.ConceptNameCodeSequence[0].CodeValue == code]


def drop_drawn_partner(ds: Dataset) -> None:
    container = items_named(ds, "126010")[0]  # Imaging Measurements
    drawn = next(g for g in container.ContentSequence if any(i.ValueType == "SCOORD" for i in g.ContentSequence))
    container.ContentSequence.remove(drawn)


def change_partner_tracking_uid(ds: Dataset) -> None:
    items_named(ds, "112040")[1].UID = "1.2.3"


def change_unit(ds: Dataset) -> None:
    item = items_named(ds, "VBMD-K2HPO4")[0].MeasuredValueSequence[0]
    item.MeasurementUnitsCodeSequence[0].CodeValue = "g/cm3"


def change_material(ds: Dataset) -> None:
    for item in items_named(ds, "VBMD-K2HPO4"):
        item.ConceptNameCodeSequence[0].CodeValue = "VBMD-HA"


def change_value(ds: Dataset) -> None:
    items_named(ds, "VBMD-K2HPO4")[0].MeasuredValueSequence[0].FloatingPointValue += 0.1


def swap_sites(ds: Dataset) -> None:
    for item in items_named(ds, "363698007"):
        code = item.ConceptCodeSequence[0]
        code.CodeValue = {"66794005": "14293000", "14293000": "66794005"}.get(code.CodeValue, code.CodeValue)


def swap_values_of_levels(ds: Dataset) -> None:
    first, second = items_named(ds, "VBMD-K2HPO4")[:2]
    values = first.MeasuredValueSequence, second.MeasuredValueSequence
    second.MeasuredValueSequence, first.MeasuredValueSequence = values


def refer_to_another_segment(ds: Dataset) -> None:
    items_named(ds, "121191")[0].ReferencedSOPSequence[0].ReferencedSegmentNumber = 4


def refer_to_another_source(ds: Dataset) -> None:
    items_named(ds, "121232")[0].UID = "1.2.3"


def continuous_containers(ds: Dataset) -> None:
    ds.ContinuityOfContent = "CONTINUOUS"


def method_as_content(ds: Dataset) -> None:
    items_named(ds, "370129005")[0].RelationshipType = "CONTAINS"


def open_outline(ds: Dataset) -> None:
    item = next(item for item in walk(ds) if item.ValueType == "SCOORD")
    item.GraphicData = list(item.GraphicData)[:-2]


def verify_it(ds: Dataset) -> None:
    ds.VerificationFlag = "VERIFIED"


@pytest.mark.parametrize(
    "change",
    [drop_drawn_partner, change_partner_tracking_uid, change_unit, change_material, change_value, swap_sites,
     swap_values_of_levels, refer_to_another_segment, refer_to_another_source, continuous_containers,
     method_as_content, open_outline, verify_it],
)
def test_a_changed_measurement_report_is_caught(change, written, headers, result) -> None:
    assert check_objects(changed(written, ObjectKind.MEASUREMENTS, change), headers, result, SETTINGS)


def lose(keyword: str) -> Callable[[Dataset], None]:
    return lambda ds: delattr(ds, keyword)


@pytest.mark.parametrize("kind", [ObjectKind.SEGMENTATION, ObjectKind.MEASUREMENTS, ObjectKind.REPORT])
@pytest.mark.parametrize(
    "keyword",
    ["AccessionNumber", "TimezoneOffsetFromUTC", "PatientID", "PatientName", "StudyID", "SpecificCharacterSet"],
)
def test_a_lost_identity_attribute_is_caught(keyword: str, kind: ObjectKind, written, headers, result) -> None:
    problems = check_objects(changed(written, kind, lose(keyword)), headers, result, SETTINGS)
    assert f"{kind}: {keyword} is not the source's" in problems


def test_a_report_in_the_source_series_or_in_another_s_is_caught(written, headers, result) -> None:
    for uid in (headers[0].SeriesInstanceUID, written[0].dataset.SeriesInstanceUID):
        def move(ds: Dataset, uid: str = uid) -> None:
            ds.SeriesInstanceUID = uid

        assert check_objects(changed(written, ObjectKind.REPORT, move), headers, result, SETTINGS)


def test_a_lost_sentence_is_caught(written, headers, result) -> None:
    def drop(ds: Dataset) -> None:
        section = next(item for item in ds.ContentSequence if item.ValueType == "CONTAINER")
        del section.ContentSequence[1]

    assert check_objects(changed(written, ObjectKind.REPORT, drop), headers, result, SETTINGS)


def test_a_changed_feature_and_a_drawn_feature_group_are_caught(written, headers, result) -> None:
    def change(ds: Dataset) -> None:
        item = items_named(ds, "QG58")[0].MeasuredValueSequence[0]
        item.NumericValue = "999"
        if "FloatingPointValue" in item:
            item.FloatingPointValue = 999.0

    assert check_objects(changed(written, ObjectKind.RADIOMICS, change), headers, result, SETTINGS)


def test_headers_in_the_wrong_order_are_caught_before_anything_is_written(headers, result) -> None:
    """The silent error: every frame is where its header says, but the headers are not in the label map's order."""
    with pytest.raises(EncodingError, match="from the VOI centre of the analysis"):
        encode_patient_result(result, headers[::-1], SETTINGS)


def test_swapped_levels_are_caught_before_anything_is_written(headers, result) -> None:
    first, second = result.vois
    swapped = (replace(first, level="L2"), replace(second, level="L1"))
    with pytest.raises(EncodingError, match="head to feet"):
        encode_patient_result(replace(result, vois=swapped), headers, SETTINGS)


def test_values_of_another_material_are_caught(written, headers, result) -> None:
    other = replace(result, summary=make_summary(material=Material.HA))
    assert any("lacks VBMD-HA" in problem for problem in check_objects(written, headers, other, SETTINGS))


def test_uids_outside_the_configured_root_are_caught(written, headers, result) -> None:
    settings = replace(SETTINGS, uid_root="1.2.840.99999")
    assert any("configured root" in problem for problem in check_objects(written, headers, result, settings))
