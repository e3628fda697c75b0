"""Phantom, patient or other: the rules that a site will argue about, with the reason in words."""

import pytest
from pydicom import Dataset

from analysis.protocol import ProtocolReference
from node.series_kind import SeriesKind, SeriesRules, choose_series, judge_series

RULES = SeriesRules()


def header(**changes: object) -> Dataset:
    ds = Dataset()
    ds.SOPClassUID, ds.Modality, ds.SeriesInstanceUID = "1.2.840.10008.5.1.4.1.1.2", "CT", "1.2.3"
    ds.ImageType, ds.ConvolutionKernel, ds.SliceThickness = ["ORIGINAL", "PRIMARY", "AXIAL"], "STANDARD", "1.25"
    ds.PatientID, ds.SeriesDescription = "4711", "ABDOMEN"
    for keyword, value in changes.items():
        setattr(ds, keyword, value)
    return ds


def test_the_phantom_is_known_by_its_patient_id_and_names_its_serial() -> None:
    verdict = judge_series(header(PatientID="QCT-PHANTOM-1", SeriesDescription="QCT PHANTOM 4541A"), "CT1", RULES)
    assert verdict.kind is SeriesKind.PHANTOM and verdict.phantom_serial == "4541A"


def test_a_calling_ae_title_may_stand_for_phantom_scans() -> None:
    rules = SeriesRules(phantom_ae_titles=("QCTPHANTOM",))
    assert judge_series(header(), "QCTPHANTOM", rules).kind is SeriesKind.PHANTOM
    assert judge_series(header(), "CT1", rules).kind is SeriesKind.PATIENT


@pytest.mark.parametrize(
    "image_type",
    [
        ["ORIGINAL", "PRIMARY", "LOCALIZER"],
        ["DERIVED", "SECONDARY", "MPR"],
        ["ORIGINAL", "PRIMARY", "AXIAL", "MONOENERGETIC"],
        ["ORIGINAL", "SECONDARY", "DOSE_INFO"],
    ],
)
def test_images_that_are_no_original_axial_slices_are_other(image_type: list[str]) -> None:
    verdict = judge_series(header(ImageType=image_type), "CT1", RULES)
    assert verdict.kind is SeriesKind.OTHER and "expected" in verdict.reason


def test_the_unenhanced_thin_body_series_is_chosen_and_each_other_one_has_a_reason() -> None:
    series = [
        (header(SeriesInstanceUID="1.1", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]), 2),
        (header(SeriesInstanceUID="1.2", SliceThickness="5"), 60),
        (header(SeriesInstanceUID="1.3"), 240),
        (header(SeriesInstanceUID="1.4", ContrastBolusAgent="IV"), 240),
        (header(SeriesInstanceUID="1.5", ConvolutionKernel="BONEPLUS"), 240),
        (header(SeriesInstanceUID="1.8", ConvolutionKernel=["I70f", "3"]), 240),
        (header(SeriesInstanceUID="1.6"), 4),
    ]
    choice = choose_series(series, RULES, ProtocolReference())
    assert choice.series_instance_uid == "1.3"
    reasons = dict(choice.rejected)
    assert set(reasons) == {"1.1", "1.2", "1.4", "1.5", "1.6", "1.8"}
    assert "LOCALIZER" in reasons["1.1"] and "enhanced" in reasons["1.4"] and "sharp" in reasons["1.5"]
    assert "sharp" in reasons["1.8"], "the kernel's name is the first of two values"
    assert "4 slices" in reasons["1.6"]


def test_a_study_without_axial_ct_has_no_choice() -> None:
    assert choose_series([(header(Modality="MR"), 30)], RULES, ProtocolReference()).series_instance_uid is None
