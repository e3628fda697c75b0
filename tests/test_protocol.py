"""The patient scan against the reference protocol; the site's own protocol has no finding but "as protocol"."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from analysis.protocol import ProtocolReference, check_protocol
from analysis.refusals import REASONS
from analysis.results import ProtocolFinding, SeriesHeader, Severity

HEADER = SeriesHeader(
    series_instance_uid="1.2.3", study_instance_uid="1.2", frame_of_reference_uid="1.2.4",
    acquired=datetime(2026, 3, 2, 9, 0, tzinfo=UTC), manufacturer="GE", manufacturer_model_name="Revolution",
    device_serial_number="S1", station_name=None, software_versions="1", date_of_last_calibration=None, kvp=120.0,
    tube_current_ma=(80.0, 320.0), exposure_modulation_type="SMART mA", filter_type="BODY FILTER",
    data_collection_diameter_mm=500.0, reconstruction_diameter_mm=500.0, convolution_kernel="STANDARD",
    slice_thickness_mm=1.25, spacing_between_slices_mm=1.25, pixel_spacing_mm=(0.9765625, 0.9765625),
    table_height_mm=160.0, spiral_pitch_factor=0.98, gantry_detector_tilt_deg=0.0, patient_position="HFS",
    image_type=("ORIGINAL", "PRIMARY", "AXIAL"), contrast_bolus_agent=None, lossy=False, rows=512, columns=512,
    n_slices=200,
)  # fmt: skip
REFERENCE = ProtocolReference()


def finding(attribute: str, reference: ProtocolReference = REFERENCE, **changes: object) -> ProtocolFinding:
    header = replace(HEADER, **changes)  # type: ignore[arg-type]
    return next(found for found in check_protocol(header, reference) if found.attribute == attribute)


def test_the_reference_protocol_itself_has_no_departure_and_costs_nothing() -> None:
    findings = check_protocol(HEADER, REFERENCE)
    assert {found.severity for found in findings} == {Severity.AS_PROTOCOL}
    assert sum(found.u_mg_cm3 for found in findings) == 0.0


@pytest.mark.parametrize(
    ("attribute", "changes", "code"),
    [
        ("tube voltage", {"kvp": 70.0}, "PROTOCOL_KVP"),
        ("tube voltage", {"kvp": None}, "PROTOCOL_KVP"),
        ("slice thickness", {"slice_thickness_mm": 5.0, "spacing_between_slices_mm": 5.0}, "PROTOCOL_THICKNESS"),
        ("slice thickness", {"slice_thickness_mm": 5.0}, "PROTOCOL_THICKNESS"),
        ("slice interval", {"spacing_between_slices_mm": 2.5}, "SLICE_GAP"),
        ("kernel", {"convolution_kernel": "BONEPLUS"}, "PROTOCOL_KERNEL"),
        ("kernel", {"convolution_kernel": None}, "PROTOCOL_KERNEL"),
        ("gantry tilt", {"gantry_detector_tilt_deg": 12.0}, "GANTRY_TILT"),
        ("contrast agent", {"contrast_bolus_agent": "OMNIPAQUE 350"}, "CONTRAST_TAG"),
        ("compression", {"lossy": True}, "LOSSY"),
        ("image type", {"image_type": ("DERIVED", "SECONDARY", "AXIAL")}, "DERIVED_IMAGE"),
        ("image type", {"image_type": ("ORIGINAL", "PRIMARY", "LOCALIZER")}, "DERIVED_IMAGE"),
        ("image type", {"image_type": ("DERIVED", "PRIMARY", "AXIAL", "MONOENERGETIC")}, "PROTOCOL_ENERGY"),
    ],
)
def test_what_no_calibration_can_make_good_is_refused_with_its_reason(
    attribute: str, changes: dict[str, object], code: str
) -> None:
    found = finding(attribute, **changes)
    assert found.severity is Severity.REFUSED
    assert found.reason is not None and found.reason.code == code and code in REASONS
    assert found.found in found.reason.text and found.expected in found.reason.text


@pytest.mark.parametrize(
    ("attribute", "changes"),
    [
        ("tube current", {"tube_current_ma": (30.0, 600.0)}),
        ("tube current", {"tube_current_ma": None}),
        ("field of view", {"reconstruction_diameter_mm": 360.0}),
        ("slice thickness", {"slice_thickness_mm": 2.5, "spacing_between_slices_mm": 2.5}),
        ("patient position", {"patient_position": None}),
    ],
)
def test_a_tolerated_departure_adds_uncertainty(attribute: str, changes: dict[str, object]) -> None:
    found = finding(attribute, **changes)
    assert found.severity is Severity.TOLERATED and found.u_mg_cm3 > 0 and found.reason is None


def test_thicker_slices_cost_more_up_to_the_limit_that_the_site_sets() -> None:
    costs = [
        finding("slice thickness", slice_thickness_mm=mm, spacing_between_slices_mm=mm).u_mg_cm3
        for mm in (1.5, 2.0, 3.0)
    ]
    assert costs == sorted(costs) and costs[0] < costs[-1]
    wide = replace(REFERENCE, max_slice_thickness_mm=5.0)
    found = finding("slice thickness", wide, slice_thickness_mm=5.0, spacing_between_slices_mm=5.0)
    assert found.severity is Severity.TOLERATED and found.u_mg_cm3 > costs[-1]


def test_contrast_may_be_configured_to_a_warning() -> None:
    found = finding("contrast agent", replace(REFERENCE, contrast="warn"), contrast_bolus_agent="IV")
    assert found.severity is Severity.TOLERATED


def test_a_kernel_that_the_site_vouches_for_is_as_protocol_and_one_it_refuses_is_refused() -> None:
    allowing = replace(REFERENCE, allowed_kernels=("BONE",), refused_kernels=("STANDARD",))
    assert finding("kernel", allowing, convolution_kernel="BONE").severity is Severity.AS_PROTOCOL
    assert finding("kernel", allowing, convolution_kernel="STANDARD").severity is Severity.REFUSED
