"""Measurement and radiomics SR: the result's values under the right codes, in the shape that viewers need."""

from dataclasses import replace
from io import BytesIO

import highdicom as hd
import pytest
from pydicom import Dataset
from pydicom.sr.codedict import codes as public_codes

from analysis.results import Material, PatientResult, RadiomicsPrediction, Reason
from node import codes
from node.encode_results import encode_patient_result
from node.encoded import Attachments, EncodingSettings, MeasurementSrClass, ObjectKind, SegmentationType
from node.sr_checks import read_groups, walk
from tests.result_builders import CREATED, Grid, make_headers, make_result, make_summary

ALL = EncodingSettings()
VALUES = EncodingSettings(objects=frozenset({ObjectKind.SEGMENTATION, ObjectKind.MEASUREMENTS}))
FEATURES = EncodingSettings(objects=frozenset({ObjectKind.RADIOMICS}))


def encode(result: PatientResult, headers: tuple[Dataset, ...], settings: EncodingSettings = VALUES) -> dict:
    objects = encode_patient_result(result, headers, settings, attachments=Attachments(created=CREATED))
    return {item.kind: item.dataset for item in objects}


@pytest.fixture(scope="module")
def study() -> tuple[PatientResult, dict]:
    headers = make_headers()
    result = make_result(headers)
    return result, encode(result, headers, ALL)


def test_highdicom_reads_the_values_of_the_result(study) -> None:
    result, objects = study
    buffer = BytesIO()
    objects[ObjectKind.MEASUREMENTS].save_as(buffer)
    buffer.seek(0)
    report = hd.sr.srread(buffer).content
    for vertebra in result.vertebrae:
        uid = next(
            group.tracking_uid for group in read_groups(objects[ObjectKind.MEASUREMENTS])
            if group.name == f"{vertebra.level} trabecular VOI"
        )
        (group,) = report.get_volumetric_roi_measurement_groups(tracking_uid=uid)
        values = {item.name.value: (item.value, item.unit.value) for item in group.get_measurements()}
        assert values["VBMD-K2HPO4"] == (vertebra.bmd_mg_cm3, "mg/cm3")
        assert values["VBMD-U"] == (pytest.approx(2 * vertebra.u_bmd_mg_cm3), "mg/cm3")
        assert values["112181"] == (vertebra.mean_hu, "[hnsf'U]")
        assert values["112183"] == (vertebra.sd_hu, "[hnsf'U]")
        assert values["118565006"] == (pytest.approx(vertebra.voi_volume_mm3 / 1000), "cm3")
        assert len(report.get_planar_roi_measurement_groups(tracking_uid=uid)) == 1


def test_each_value_group_has_a_drawn_partner_without_values(study) -> None:
    groups = read_groups(study[1][ObjectKind.MEASUREMENTS])
    assert [g.name for g in groups if g.segment] == [g.name for g in groups if g.polyline]
    for group in groups:
        partners = [g for g in groups if g.tracking_uid == group.tracking_uid]
        assert sorted(bool(g.values) for g in partners) == [False, True]


def test_two_outlines_never_lie_on_the_same_slice(study) -> None:
    lines = [group.polyline for group in read_groups(study[1][ObjectKind.MEASUREMENTS]) if group.polyline]
    assert len({image for image, _ in lines}) == len(lines) == 3


def test_outline_runs_half_a_pixel_from_pixel_centres_around_the_voi(study) -> None:
    """Image coordinates count from the corner of the first pixel, so the centre of mass is index + 0.5."""
    result, objects = study
    group = next(g for g in read_groups(objects[ObjectKind.MEASUREMENTS]) if g.polyline)
    columns, rows = group.polyline[1][::2], group.polyline[1][1::2]
    voi = result.vois[0]
    middle = voi.weights[len(voi.weights) // 2]
    mass = middle.sum()
    row = (middle.sum(axis=1) @ range(middle.shape[0])) / mass + voi.start[1] + 0.5
    column = (middle.sum(axis=0) @ range(middle.shape[1])) / mass + voi.start[2] + 0.5
    assert (min(columns) + max(columns)) / 2 == pytest.approx(column, abs=0.1)
    assert (min(rows) + max(rows)) / 2 == pytest.approx(row, abs=0.1)


def test_numbers_are_rounded_for_people_and_exact_for_machines(study) -> None:
    result, objects = study
    item = next(i for i in walk(objects[ObjectKind.MEASUREMENTS]) if i.ValueType == "NUM"
                and i.ConceptNameCodeSequence[0].CodeValue == "112181")
    assert str(item.MeasuredValueSequence[0].NumericValue) == f"{result.vertebrae[0].mean_hu:.1f}"
    assert item.MeasuredValueSequence[0].FloatingPointValue == result.vertebrae[0].mean_hu


def test_containers_are_separate_and_method_modifies_the_group(study) -> None:
    for kind in (ObjectKind.MEASUREMENTS, ObjectKind.REPORT, ObjectKind.RADIOMICS):
        items = list(walk(study[1][kind]))
        assert {i.ContinuityOfContent for i in items if i.ValueType == "CONTAINER"} == {"SEPARATE"}
        methods = [i for i in items[1:] if i.ConceptNameCodeSequence[0].CodeValue == "370129005"]
        assert {i.RelationshipType for i in methods} <= {"HAS CONCEPT MOD"}


def test_each_measurement_names_its_algorithm_and_the_calibration(study) -> None:
    for item in walk(study[1][ObjectKind.MEASUREMENTS]):
        if item.ValueType == "NUM":
            texts = [child.TextValue for child in item.ContentSequence if child.ValueType == "TEXT"]
            assert any("0.1.0" in text for text in texts)
    everything = " ".join(str(i.get("TextValue", "")) for i in walk(study[1][ObjectKind.MEASUREMENTS]))
    for fact in ("4541A", "2026-02-27 07:30", "1.249558", "-10.1500", "3.10 days", "material K2HPO4", "ab" * 32):
        assert fact in everything


def test_material_decides_the_code_so_that_scales_are_never_mixed() -> None:
    headers = make_headers()
    summary = make_summary(material=Material.HA, classification=None)
    objects = encode(make_result(headers, summary=summary), headers)
    found = {code for group in read_groups(objects[ObjectKind.MEASUREMENTS]) for code in group.values}
    assert "VBMD-HA" in found
    assert "VBMD-K2HPO4" not in found
    answers = [code for group in read_groups(objects[ObjectKind.MEASUREMENTS]) for code in group.answers]
    assert codes.BMD_CATEGORY.value not in answers


@pytest.mark.parametrize(("borderline", "answer"), [(True, public_codes.SCT.Yes), (False, public_codes.SCT.No)])
def test_category_and_borderline_hang_on_the_mean(borderline: bool, answer) -> None:
    headers = make_headers()
    objects = encode(make_result(headers, summary=make_summary(borderline=borderline)), headers)
    groups = {g.name: g for g in read_groups(objects[ObjectKind.MEASUREMENTS]) if g.values}
    assert groups["L1-L2 trabecular VOI"].answers[codes.BMD_CATEGORY.value] == "312894000"
    assert groups["L1-L2 trabecular VOI"].answers[codes.BORDERLINE.value] == answer.value
    assert codes.BMD_CATEGORY.value not in groups["L1 trabecular VOI"].answers


def test_a_single_vertebra_carries_the_category_itself() -> None:
    headers = make_headers()
    objects = encode(make_result(headers, ("L2",)), headers)
    groups = [g for g in read_groups(objects[ObjectKind.MEASUREMENTS]) if g.values]
    assert [g.name for g in groups] == ["L2 trabecular VOI"]
    assert groups[0].answers[codes.BMD_CATEGORY.value] == "312894000"


def test_label_map_destinations_get_the_mean_on_the_drawn_outline() -> None:
    headers = make_headers()
    objects = encode(make_result(headers), headers, replace(VALUES, segmentation_type=SegmentationType.LABELMAP))
    union = [g for g in read_groups(objects[ObjectKind.MEASUREMENTS]) if g.name == "L1-L2 trabecular VOI"]
    assert len(union) == 1
    assert union[0].polyline and union[0].values


def test_comprehensive_sr_is_another_object_with_the_same_values() -> None:
    headers = make_headers()
    result = make_result(headers)
    old = encode(result, headers, replace(VALUES, measurement_sr_class=MeasurementSrClass.COMPREHENSIVE))
    new = encode(result, headers)
    kind = ObjectKind.MEASUREMENTS
    assert old[kind].SOPClassUID == "1.2.840.10008.5.1.4.1.1.88.33"
    assert old[kind].SOPInstanceUID != new[kind].SOPInstanceUID
    assert [g.values for g in read_groups(old[kind])] == [g.values for g in read_groups(new[kind])]


def test_radiomics_has_93_coded_features_per_vertebra_and_nothing_to_paint(study) -> None:
    groups = read_groups(study[1][ObjectKind.RADIOMICS])
    assert [len(group.values) for group in groups] == [93, 93]
    assert not any(group.polyline for group in groups)


def test_kurtosis_is_sent_as_ibsi_defines_it(study) -> None:
    """pyradiomics' kurtosis is IBSI's excess kurtosis (IPH6) plus 3."""
    result, objects = study
    features = result.features[0]
    value = features.values[features.names.index("firstorder_Kurtosis")]
    assert read_groups(objects[ObjectKind.RADIOMICS])[0].values["IPH6"][0] == pytest.approx(value - 3)


def test_every_feature_of_the_contract_has_a_code_of_its_own() -> None:
    from analysis.feature_names import FEATURE_NAMES

    table = codes.feature_codes()
    assert set(FEATURE_NAMES) == set(table)
    assert len({item.code.value for item in table.values()}) == 93


@pytest.mark.parametrize(
    ("active", "demonstration", "state", "answered"),
    [(True, False, "OK", True), (False, False, "OK", False), (True, True, "OK", False),
     (True, False, "INDETERMINATE", False)],
)
def test_only_an_active_site_model_answers(active: bool, demonstration: bool, state: str, answered: bool) -> None:
    headers = make_headers()
    prediction = RadiomicsPrediction(
        state, make_summary().classification, (("osteopenia", 0.8),), ("osteopenia",), 0.95, "site", "ef" * 32,
        demonstration,
    )  # fmt: skip
    settings = replace(FEATURES, radiomics_model_active=active)
    objects = encode(make_result(headers, prediction=prediction), headers, settings)
    answers = [code for group in read_groups(objects[ObjectKind.RADIOMICS]) for code in group.answers]
    assert (codes.RADIOMICS_ANSWER.value in answers) is answered
    texts = " ".join(str(i.get("TextValue", "")) for i in walk(objects[ObjectKind.RADIOMICS]))
    assert ("95 % set: osteopenia" in texts) is answered


def test_features_that_were_refused_leave_a_reason_and_no_group() -> None:
    headers = make_headers()
    result = make_result(headers)
    refused = replace(result.features[1], names=(), values=(), reason=Reason("X", "flat VOI"))
    objects = encode(replace(result, features=(result.features[0], refused)), headers, FEATURES)
    texts = [str(i.get("TextValue", "")) for i in walk(objects[ObjectKind.RADIOMICS])]
    assert len(read_groups(objects[ObjectKind.RADIOMICS])) == 1
    assert "L2: flat VOI." in texts


def test_amended_reports_name_their_predecessor() -> None:
    headers = make_headers()
    result = make_result(headers)
    reports = replace(VALUES, objects=VALUES.objects | {ObjectKind.REPORT})
    first = encode_patient_result(result, headers, reports)
    second = encode_patient_result(result, headers, reports, tuple(item.as_predecessor() for item in first))
    before = {item.kind: item.dataset for item in first}
    for item in second:
        assert item.dataset.SOPInstanceUID != before[item.kind].SOPInstanceUID
        if item.dataset.Modality == "SR":
            series = item.dataset.PredecessorDocumentsSequence[0].ReferencedSeriesSequence[0]
            assert series.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == before[item.kind].SOPInstanceUID


def test_tracking_uids_survive_an_amendment() -> None:
    headers = make_headers()
    result = make_result(headers)
    amended = replace(result, software_version="0.2.0")
    first, second = encode(result, headers), encode(amended, headers)
    assert first[ObjectKind.SEGMENTATION].SOPInstanceUID != second[ObjectKind.SEGMENTATION].SOPInstanceUID
    uids = [[s.TrackingUID for s in objects[ObjectKind.SEGMENTATION].SegmentSequence] for objects in (first, second)]
    assert uids[0] == uids[1]


def test_uids_lie_below_the_configured_root_and_are_no_longer_than_64() -> None:
    headers = make_headers(Grid(n_slices=20))
    objects = encode(make_result(headers), headers, replace(VALUES, uid_root="1.2.276.0.7230010.3.1.4.99999"))
    for ds in objects.values():
        for uid in (ds.SOPInstanceUID, ds.SeriesInstanceUID):
            assert uid.startswith("1.2.276.0.7230010.3.1.4.99999.")
            assert len(uid) <= 64
