"""A patient scan against a calibration: the hard key that must be equal, soft differences and their uncertainty."""

from dataclasses import dataclass

from analysis.calibration import calibration_key
from analysis.calibration_state import CommissioningLimits
from analysis.errors import NoValidCalibrationError
from analysis.refusals import reason
from analysis.results import Calibration, CalibrationKey, PhantomSetup, Reason, SeriesHeader, UncertaintyTerm


@dataclass(frozen=True, slots=True)
class ChoiceLimits:
    """Ages in days, differences in the unit of their name, uncertainties in mg/cm3."""

    normal_days: float = 7.0
    max_days: float = 14.0
    allow_later_scan: bool = False  # a phantom scan after the patient serves when there is none before
    setup_preference: tuple[PhantomSetup, ...] = (PhantomSetup.TORSO, PhantomSetup.UNDER_PATIENT, PhantomSetup.ALONE)
    kvp_tolerance: float = 0.5
    may_be_absent: tuple[str, ...] = ()  # tags of the hard key whose absence in both scans counts as equal
    max_diameter_ratio: float = 1.2  # reconstruction diameter
    max_thickness_ratio: float = 2.0
    table_height_mm: float = 20.0
    max_table_height_mm: float = 50.0  # beyond it no calibration is used
    amend_mg_cm3: float = 1.5  # a report is amended when BMD moves by more
    u_reproducibility_mg_cm3: float = 0.6  # weekly phantom series, Bligh 2009
    u_drift_mg_cm3: float = 0.2  # within a week
    u_degraded_mg_cm3: float = 1.0  # instead, in the second week
    u_position_mg_cm3: float = 0.5  # table within the window
    u_position_beyond_mg_cm3: float = 1.5  # 2.3 % uncontrolled, Bligh 2009
    u_soft_mg_cm3: float = 0.5  # per soft difference or unknown
    u_service_mg_cm3: float = 1.0  # scanner calibrated in between
    commissioning: CommissioningLimits = CommissioningLimits()


@dataclass(frozen=True, slots=True)
class KeyDifference:
    attribute: str
    found: str
    calibrated: str


def key_differences(
    wanted: CalibrationKey, key: CalibrationKey, kvp_tolerance: float = 0.5
) -> tuple[KeyDifference, ...]:
    """What keeps a scan with key `wanted` from a calibration with `key`; phantom and set-up are not the patient's.

    A part of filter or scan field that only one side states is no difference here, but a soft unknown.
    """
    pairs = [
        ("Manufacturer", wanted.manufacturer, key.manufacturer),
        ("ManufacturerModelName", wanted.manufacturer_model_name, key.manufacturer_model_name),
        ("DeviceSerialNumber", wanted.device_serial_number, key.device_serial_number),
        ("SoftwareVersions", wanted.software_epoch, key.software_epoch),
        ("ConvolutionKernel", wanted.convolution_kernel, key.convolution_kernel),
    ]
    found = [KeyDifference(n, a, b) for n, a, b in pairs if a != b]
    if abs(wanted.kvp - key.kvp) > kvp_tolerance:
        found.append(KeyDifference("KVP", f"{wanted.kvp:g}", f"{key.kvp:g}"))
    for name, a, b in zip(("FilterType", "DataCollectionDiameter"), _parts(wanted), _parts(key), strict=True):
        if a and b and a != b:
            found.append(KeyDifference(name, a, b))
    return tuple(found)


def _parts(key: CalibrationKey) -> tuple[str, str]:
    """Filter and scan field of `filter_type`."""
    filter_type, _, diameter = key.filter_type.rpartition("/")
    return filter_type, diameter


def calibrated_between(one: SeriesHeader | None, other: SeriesHeader | None) -> bool:
    dates = [h.date_of_last_calibration if h else None for h in (one, other)]
    return all(dates) and dates[0] != dates[1]


def soft_differences(
    header: SeriesHeader, calibration: Calibration, limits: ChoiceLimits
) -> tuple[tuple[UncertaintyTerm, ...], tuple[Reason, ...]]:
    """Soft differences between the patient scan and the phantom scan, as terms and flags."""
    phantom = calibration.header
    if phantom is None:
        return (), (reason("CALIBRATION_UNKNOWN_SOFT", "the phantom scan's header is not stored"),)
    terms, flags = _position(header, phantom, limits)
    if not header.device_serial_number:
        flags.append(
            reason("CALIBRATION_UNKNOWN_SOFT", "DeviceSerialNumber absent in both scans; the site lets it be absent")
        )
    for name, a, b, ratio in (
        (
            "ReconstructionDiameter",
            header.reconstruction_diameter_mm,
            phantom.reconstruction_diameter_mm,
            limits.max_diameter_ratio,
        ),
        ("SliceThickness", header.slice_thickness_mm, phantom.slice_thickness_mm, limits.max_thickness_ratio),
        ("SpiralPitchFactor", header.spiral_pitch_factor, phantom.spiral_pitch_factor, 1.01),
    ):
        if a and b and max(a, b) / min(a, b) > ratio:
            flags.append(reason("CALIBRATION_SOFT_DIFFERENCE", f"{name} {a:g}, phantom scan {b:g}"))
            terms.append(UncertaintyTerm(f"differs: {name}", limits.u_soft_mg_cm3, True))
    key = calibration.key
    for name, one, other in zip(
        ("FilterType", "DataCollectionDiameter"),
        _parts(calibration_key(header, "", key.setup)),
        _parts(key),
        strict=True,
    ):
        if bool(one) != bool(other):
            text = f"{name} {one or 'absent'}, phantom scan {other or 'absent'}"
            flags.append(reason("CALIBRATION_UNKNOWN_SOFT", text))
            terms.append(UncertaintyTerm(f"unknown: {name}", limits.u_soft_mg_cm3, True))
    if calibrated_between(header, phantom):
        dates = (
            f"DateOfLastCalibration {header.date_of_last_calibration}, phantom scan {phantom.date_of_last_calibration}"
        )
        flags.append(reason("CALIBRATION_SINCE_SERVICE", dates))
        terms.append(UncertaintyTerm("scanner calibrated since", limits.u_service_mg_cm3, True))
    return tuple(terms), tuple(flags)


def _position(
    header: SeriesHeader, phantom: SeriesHeader, limits: ChoiceLimits
) -> tuple[list[UncertaintyTerm], list[Reason]]:
    """Table height: within the window, beyond it with a larger term, or too far."""
    heights = header.table_height_mm, phantom.table_height_mm
    if heights[0] is None or heights[1] is None:
        return [UncertaintyTerm("position", limits.u_position_mg_cm3 + limits.u_soft_mg_cm3, True)], []
    difference = abs(heights[0] - heights[1])
    text = f"table {difference:.0f} mm off the phantom scan's height, expected within {limits.table_height_mm:.0f}"
    if difference > limits.max_table_height_mm:
        raise NoValidCalibrationError(
            "CALIBRATION_TABLE_HEIGHT", f"{text}, refused beyond {limits.max_table_height_mm:.0f}"
        )
    if difference > limits.table_height_mm:
        return [UncertaintyTerm("position", limits.u_position_beyond_mg_cm3, True)], [
            reason("CALIBRATION_TABLE_HEIGHT", text)
        ]
    return [UncertaintyTerm("position", limits.u_position_mg_cm3, True)], []
