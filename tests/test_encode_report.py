"""Readable report, refusal, phantom answer, page and picture: what people see."""

from dataclasses import replace
from datetime import UTC, datetime
from io import BytesIO

import numpy as np
import pytest
from PIL import Image
from pydicom import Dataset, dcmread
from pydicom.sequence import Sequence

from analysis.results import LongitudinalChange, PatientResult, Reason, Reference, RejectedVertebra
from node.encode_results import encode_patient_result, encode_phantom_answer, encode_refusal
from node.encoded import Attachments, EncodingSettings, ObjectKind, TextSrClass
from tests.result_builders import (
    CHOSEN,
    CREATED,
    make_calibration,
    make_headers,
    make_refusal,
    make_result,
    make_summary,
)

ALL = EncodingSettings()
READ = EncodingSettings(objects=frozenset({ObjectKind.SEGMENTATION, ObjectKind.REPORT, ObjectKind.REFUSAL}))
PAGE = EncodingSettings(objects=frozenset({ObjectKind.PDF, ObjectKind.PICTURE}))


def make_png(size: tuple[int, int] = (60, 40)) -> bytes:
    pixels = np.arange(size[0] * size[1] * 3, dtype=np.uint8).reshape(size[1], size[0], 3)
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    return buffer.getvalue()


PICTURES = Attachments(make_png(), make_png(), CREATED)


def encode(result: PatientResult, headers: tuple[Dataset, ...], settings: EncodingSettings = READ) -> dict:
    return {item.kind: item.dataset for item in encode_patient_result(result, headers, settings, attachments=PICTURES)}


def sentences(ds: Dataset) -> list[str]:
    return [str(text.TextValue) for section in ds.ContentSequence if section.ValueType == "CONTAINER"
            for text in section.ContentSequence]


def report_of(**changes: object) -> list[str]:
    headers = make_headers()
    return sentences(encode(make_result(headers, **changes), headers)[ObjectKind.REPORT])


def test_report_says_use_values_class_calibration_scan_and_flags_in_this_order() -> None:
    text = report_of()
    assert text[0] == "For research use only; not for clinical decisions."
    assert text[1].startswith("L1: 92.4 mg/cm3 (K2HPO4), uncertainty +/- 6.4 (k=2), mean 105 HU, SD 31 HU, VOI ")
    assert text[2].startswith("L2: 86.2 mg/cm3 (K2HPO4)")
    assert text[3] == (
        "Mean of L1 and L2: 89.3 mg/cm3 (K2HPO4), uncertainty +/- 5.8 (k=2): osteopenia (80 to 120 mg/cm3)."
    )
    order = [next(i for i, line in enumerate(text) if line.startswith(start))
             for start in ("Mean of", "Volumetric", "Calibration", "Scan", "Quality flag", "Software")]
    assert order == sorted(order)


def test_calibration_line_names_phantom_date_age_slope_intercept_and_material() -> None:
    line = next(text for text in report_of() if text.startswith("Calibration"))
    for fact in ("4541A", "2026-02-27 07:30 UTC", "3.1 days before", "1.2496 HU per mg/cm3", "-10.15 HU", "K2HPO4"):
        assert fact in line


def test_report_is_two_levels_deep_with_text_leaves_only() -> None:
    headers = make_headers()
    ds = encode(make_result(headers), headers)[ObjectKind.REPORT]
    sections = [item for item in ds.ContentSequence if item.ValueType == "CONTAINER"]
    assert sections
    assert {item.ValueType for section in sections for item in section.ContentSequence} == {"TEXT"}
    assert not any("ContentSequence" in item for section in sections for item in section.ContentSequence)


@pytest.mark.parametrize(
    ("levels", "phrase"),
    [(("L1", "L2"), "Mean of L1 and L2:"), (("T12", "L1"), "Mean of T12 and L1 (not the L1-L2 mean):"),
     (("L2",), "Only L2 was measured, this is not an L1-L2 mean:")],
)
def test_only_l1_and_l2_are_called_their_mean(levels: tuple[str, ...], phrase: str) -> None:
    headers = make_headers()
    text = sentences(encode(make_result(headers, levels), headers)[ObjectKind.REPORT])
    assert sum(line.startswith(phrase) for line in text) == 1


def test_borderline_rejected_reference_and_change_are_said() -> None:
    summary = make_summary(
        borderline=True, reference=Reference(-1.2, 12.0, "women aged 60 to 64", "a published table"),
        rejected=(RejectedVertebra("L1", Reason("FRACTURE", "anterior height 18 mm of 27 mm")),),
    )
    change = LongitudinalChange(datetime(2025, 3, 1, tzinfo=UTC), 95.0, -5.7, 6.4, False)
    text = " ".join(report_of(summary=summary, change=change))
    assert "Borderline" in text
    assert "L1 was not measured" in text and "anterior height 18 mm of 27 mm" in text
    assert "Z-score -1.2, percentile 12 of women aged 60 to 64 (a published table)" in text
    assert "-5.7 mg/cm3, which does not exceed the least significant change of 6.4 mg/cm3" in text


def test_interpolated_calibration_is_no_longer_provisional() -> None:
    chosen = replace(CHOSEN, bracketing_id="cal-0018", interpolation_weight=0.43, provisional=False)
    line = next(text for text in report_of(chosen=chosen) if text.startswith("Calibration"))
    assert "interpolated with the next phantom scan (its weight 0.43)" in line
    assert "provisional" not in line


def test_report_is_no_diagnosis_by_t_score() -> None:
    assert "Volumetric density by quantitative CT; not a DXA T-score, do not apply T-score criteria." in report_of()


def test_basic_text_sr_by_configuration() -> None:
    headers = make_headers()
    ds = encode(make_result(headers), headers, replace(READ, text_sr_class=TextSrClass.BASIC))[ObjectKind.REPORT]
    assert ds.SOPClassUID == ds.file_meta.MediaStorageSOPClassUID == "1.2.840.10008.5.1.4.1.1.88.11"
    assert sentences(ds)[0].startswith("For research")


def test_report_refers_to_segmentation_measurements_and_ct() -> None:
    headers = make_headers()
    objects = encode(make_result(headers), headers, ALL)
    evidence = objects[ObjectKind.REPORT].CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence
    series = {item.SeriesInstanceUID: len(item.ReferencedSOPSequence) for item in evidence}
    assert series[headers[0].SeriesInstanceUID] == len(headers)
    for kind in (ObjectKind.SEGMENTATION, ObjectKind.MEASUREMENTS):
        assert series[objects[kind].SeriesInstanceUID] == 1


def test_switched_off_objects_are_not_written() -> None:
    headers = make_headers()
    settings = EncodingSettings(objects=frozenset({ObjectKind.REPORT}))
    assert set(encode(make_result(headers), headers, settings)) == {ObjectKind.REPORT}


def test_refusal_says_not_measured_why_and_what_to_do() -> None:
    headers = make_headers()
    objects = encode(make_refusal(headers), headers)
    assert set(objects) == {ObjectKind.REFUSAL}
    text = sentences(objects[ObjectKind.REFUSAL])
    assert text[0].startswith("For research use only")
    assert text[1] == "Bone density of L1 and L2: NOT MEASURED."
    assert "19.2 days old; at most 14 days are allowed" in text[2]
    assert text[3] == "What to do: Scan the phantom."
    assert objects[ObjectKind.REFUSAL].CompletionFlag == "COMPLETE"


def test_a_series_refused_before_analysis_gets_the_same_report() -> None:
    headers = make_headers()
    (refusal,) = encode_refusal((Reason("SLICE_GAP", "gap of 2.5 mm at z = -312.5 mm"),), headers, ALL)
    assert "Why: Slices are missing: gap of 2.5 mm at z = -312.5 mm." in sentences(refusal.dataset)
    assert encode_refusal((), headers, EncodingSettings(objects=frozenset())) == ()


def test_phantom_scan_is_answered_in_its_own_study_with_report_and_chart() -> None:
    headers = make_headers(name="phantom")
    report, chart = encode_phantom_answer(make_calibration(), headers, make_png(), ALL, PICTURES)
    text = sentences(report.dataset)
    assert "QCT phantom 4541A (Mindways Model 3 CT): calibration ACCEPTED." in text
    assert any(line.startswith("Rod A: mean -65.0 HU") for line in text)
    assert any(line.startswith("Check r2: 0.9998 (0.999 <= value): passed") for line in text)
    assert {report.dataset.StudyInstanceUID, chart.dataset.StudyInstanceUID} == {headers[0].StudyInstanceUID}
    assert report.dataset.SeriesInstanceUID != chart.dataset.SeriesInstanceUID


def test_unusable_phantom_scan_is_answered_with_its_reason() -> None:
    headers = make_headers(name="phantom")
    reasons = (Reason("SLICE_GAP", "gap of 2 mm"),)
    rejected = make_calibration(accepted=False, reasons=reasons)
    for answer, verdict in ((reasons, "NOT MEASURED"), (rejected, "NOT ACCEPTED")):
        (report,) = encode_phantom_answer(answer, headers, None, ALL)
        assert verdict in " ".join(sentences(report.dataset))
        assert "gap of 2 mm" in " ".join(sentences(report.dataset))


def test_page_is_one_pdf_page_and_the_same_for_the_same_inputs() -> None:
    headers = make_headers()
    result = make_result(headers)
    first, second = (encode(result, headers, PAGE)[ObjectKind.PDF] for _ in range(2))
    assert first.MIMETypeOfEncapsulatedDocument == "application/pdf"
    document = first.EncapsulatedDocument[:first.EncapsulatedDocumentLength]
    assert document.startswith(b"%PDF") and document.rstrip().endswith(b"%%EOF")
    assert document.count(b"/Type /Page ") == 1
    assert document == second.EncapsulatedDocument[:second.EncapsulatedDocumentLength]


def test_picture_is_an_rgb_secondary_capture_with_the_same_pixels() -> None:
    headers = make_headers()
    ds = encode(make_result(headers), headers, PAGE)[ObjectKind.PICTURE]
    with Image.open(BytesIO(make_png())) as image:
        assert np.array_equal(ds.pixel_array, np.asarray(image.convert("RGB")))
    assert ds.PhotometricInterpretation == "RGB"


JAPANESE = "Yamada^Tarou=\u5c71\u7530^\u592a\u90ce=\u3084\u307e\u3060^\u305f\u308d\u3046"


@pytest.mark.parametrize(
    ("charset", "name"),
    [("ISO_IR 100", "M\u00fcller^\u00c4nne"), ("ISO_IR 192", "M\u00fcller^\u00c4nne=\u5c71\u7530"),
     (["", "ISO 2022 IR 87"], JAPANESE), (None, "Mueller^Anne")],
)
def test_names_arrive_as_the_scanner_wrote_them(charset, name: str) -> None:
    headers = make_headers()
    for ds in headers:
        ds.SpecificCharacterSet, ds.PatientName = charset, name
        if charset is None:
            del ds.SpecificCharacterSet
        ds.InstitutionName, ds.ReferringPhysicianName = "Klinik", "Doe^J"
    headers = tuple(through_a_file(ds) for ds in headers)
    for ds in encode(make_result(headers), headers, EncodingSettings(objects=READ.objects | PAGE.objects)).values():
        read = through_a_file(ds)
        assert read.get("SpecificCharacterSet") == headers[0].get("SpecificCharacterSet")
        assert str(read.PatientName) == name


@pytest.mark.parametrize("empty", [True, False])
@pytest.mark.parametrize(
    "keyword",
    ["AccessionNumber", "StudyID", "SliceThickness", "PatientSex", "PatientBirthDate", "StudyDate", "StudyTime",
     "PatientName", "PatientID", "ReferringPhysicianName", "Manufacturer", "FrameOfReferenceUID",
     "TimezoneOffsetFromUTC", "SpecificCharacterSet"],
)
def test_empty_and_missing_attributes_do_not_crash(keyword: str, empty: bool) -> None:
    headers = make_headers()
    for ds in headers:
        if keyword == "SpecificCharacterSet":
            ds.PatientName, ds.InstitutionName, ds.ReferringPhysicianName = "Doe^Jane", "Clinic", "Roe^R"
        if empty:
            setattr(ds, keyword, None)
        else:
            delattr(ds, keyword)
    objects = encode(make_result(headers), headers, READ)
    for ds in objects.values():
        through_a_file(ds)


@pytest.mark.filterwarnings("ignore:Invalid value for VR")
@pytest.mark.parametrize(
    ("keyword", "value"), [("PatientSex", "W"), ("PatientBirthDate", "1965"), ("StudyDate", "2026.03.02")]
)
def test_values_outside_the_standard_are_copied_and_not_judged(keyword: str, value: str) -> None:
    headers = make_headers()
    for ds in headers:
        ds.add_new(keyword, ds[keyword].VR, value)
    assert encode(make_result(headers), headers)[ObjectKind.REPORT].get(keyword) == value


def test_times_are_stated_in_the_scanner_s_time_zone() -> None:
    headers = make_headers()
    ds = encode(make_result(headers), headers)[ObjectKind.REPORT]
    assert (ds.TimezoneOffsetFromUTC, ds.ContentDate, ds.ContentTime) == ("+0100", "20260302", "153000")


def test_order_numbers_of_the_request_are_passed_on() -> None:
    headers = make_headers()
    request = Dataset()
    request.RequestedProcedureID = "RP-1"
    for ds in headers:
        ds.RequestAttributesSequence = Sequence([request])
    ds = encode(make_result(headers), headers)[ObjectKind.REPORT]
    assert ds.ReferencedRequestSequence[0].RequestedProcedureID == "RP-1"
    assert ds.ReferencedRequestSequence[0].AccessionNumber == "A-4711"


def test_our_own_words_are_ascii_whatever_the_configuration_holds() -> None:
    headers = make_headers()
    settings = replace(
        READ, use_statement="Nur f\u00fcr Studien \u2013 \u00b1", manufacturer="S\u00fcd \u00b5Labs",
        station_name="R\u00f6ntgen",
    )
    text = sentences(encode(make_result(headers), headers, settings)[ObjectKind.REPORT])
    assert text[0] == "Nur fur Studien - +/-."


def through_a_file(ds: Dataset) -> Dataset:
    ds.ensure_file_meta()
    if "TransferSyntaxUID" not in ds.file_meta:
        ds.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1"
    buffer = BytesIO()
    ds.save_as(buffer, enforce_file_format=True)
    buffer.seek(0)
    return dcmread(buffer)


def test_encoding_leaves_the_source_headers_as_they_are() -> None:
    headers = make_headers()
    before = [str(ds) for ds in headers]
    for item in encode_patient_result(make_result(headers), headers, ALL, attachments=PICTURES):
        item.dataset.PatientName, item.dataset.SOPClassUID = "Changed^Later", "1.2.3"
    assert [str(ds) for ds in headers] == before
