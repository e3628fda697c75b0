"""Which calibration may a patient scan use, and what does it cost in uncertainty?

The hard key must match: device, software epoch, tube voltage, filter and scan field, kernel. Soft differences widen
the uncertainty and are said. The line is that of the nearest accepted scan before, provisional until the next accepted
one brackets the patient scan; then it is interpolated in time (asynchronous QCT: FDA K140342 allows phantom scans
before or after the patient). Nothing reaches across an epoch break or a rejected scan.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime

import numpy as np

from analysis.calibration import calibration_key
from analysis.calibration_state import CalibrationSeries, CommissioningLimits, SeriesState, commissioning_gap, state_at
from analysis.errors import NoValidCalibrationError
from analysis.refusals import reason
from analysis.results import (
    Calibration,
    CalibrationKey,
    CalibrationLine,
    ChosenCalibration,
    PhantomSetup,
    Reason,
    SeriesHeader,
    UncertaintyTerm,
)

SECONDS_PER_DAY = 86400.0


@dataclass(frozen=True, slots=True)
class ChoiceLimits:
    """Ages in days, differences in the unit of their name, uncertainties in mg/cm3."""

    normal_days: float = 7.0
    max_days: float = 14.0
    allow_later_scan: bool = False               # a phantom scan after the patient serves when there is none before
    setup_preference: tuple[PhantomSetup, ...] = (PhantomSetup.TORSO, PhantomSetup.UNDER_PATIENT, PhantomSetup.ALONE)
    kvp_tolerance: float = 0.5
    may_be_absent: tuple[str, ...] = ()          # tags of the hard key whose absence in both scans counts as equal
    max_diameter_ratio: float = 1.2              # reconstruction diameter
    max_thickness_ratio: float = 2.0
    table_height_mm: float = 20.0
    max_table_height_mm: float = 100.0          # beyond it no calibration is used
    amend_mg_cm3: float = 1.5                    # a report is amended when BMD moves by more
    u_reproducibility_mg_cm3: float = 0.6        # weekly phantom series, Bligh 2009
    u_drift_mg_cm3: float = 0.2                  # within a week
    u_degraded_mg_cm3: float = 1.0               # instead, in the second week
    u_position_mg_cm3: float = 0.5               # table within the window
    u_position_beyond_mg_cm3: float = 1.5        # 2.3 % uncontrolled, Bligh 2009
    u_soft_mg_cm3: float = 0.5                   # per soft difference or unknown
    u_service_mg_cm3: float = 1.0                # scanner calibrated in between
    commissioning: CommissioningLimits = CommissioningLimits()


def choose_calibration(
    header: SeriesHeader, series: Sequence[CalibrationSeries], limits: ChoiceLimits | None = None
) -> ChosenCalibration:
    """The line that this patient scan may use.

    Raises
    ------
    NoValidCalibrationError : CALIBRATION_KEY_MISSING, NO_CALIBRATION, CALIBRATION_KEY_MISMATCH, CALIBRATION_EPOCH,
        CALIBRATION_COMMISSIONING, CALIBRATION_STOPPED, CALIBRATION_REJECTED_SINCE, CALIBRATION_EXPIRED,
        CALIBRATION_TABLE_HEIGHT
    """
    limits = limits or ChoiceLimits()
    acquired = _required(header, limits)
    matching = _matching(header, series, limits)
    refusals: list[NoValidCalibrationError] = []
    for candidate in sorted(matching, key=lambda s: _preference(s, acquired, limits)):
        try:
            chosen = _choose_in(header, candidate, acquired, limits)
        except NoValidCalibrationError as refusal:
            refusals.append(refusal)
        else:
            return replace(chosen, setup_diameters=_other_setups(matching, candidate, acquired, limits))
    raise refusals[0]


def _required(header: SeriesHeader, limits: ChoiceLimits) -> datetime:
    """The acquisition time; every tag of the hard key must be there, but for those that the site lets be absent."""
    wanted = {
        "Manufacturer": header.manufacturer,
        "ManufacturerModelName": header.manufacturer_model_name,
        "DeviceSerialNumber": header.device_serial_number,
        "KVP": header.kvp,
        "ConvolutionKernel": header.convolution_kernel,
        "acquisition time": header.acquired,
    }
    absent = [name for name, value in wanted.items() if not value and name not in limits.may_be_absent]
    if absent or header.acquired is None:
        absent = absent or ["acquisition time"]
        text = f"{', '.join(absent)} absent in series {header.series_instance_uid}; expected, since a calibration must match it"
        raise NoValidCalibrationError("CALIBRATION_KEY_MISSING", text)
    return header.acquired


@dataclass(frozen=True, slots=True)
class KeyDifference:
    attribute: str
    found: str
    calibrated: str


def key_differences(wanted: CalibrationKey, key: CalibrationKey, kvp_tolerance: float = 0.5) -> tuple[KeyDifference, ...]:
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


def _matching(
    header: SeriesHeader, series: Sequence[CalibrationSeries], limits: ChoiceLimits
) -> tuple[CalibrationSeries, ...]:
    wanted = calibration_key(header, "", PhantomSetup.ALONE)
    filled = [s for s in series if s.calibrations]
    if not filled:
        raise NoValidCalibrationError("NO_CALIBRATION", "no phantom scan is stored; expected one with this protocol; scan the phantom")
    differences = [(key_differences(wanted, s.key, limits.kvp_tolerance), s) for s in filled]
    matching = tuple(s for found, s in differences if not found)
    if not matching:
        raise _mismatch(min((found for found, _ in differences), key=len))
    return matching


DEVICE_ATTRIBUTES = frozenset({"Manufacturer", "ManufacturerModelName", "DeviceSerialNumber"})


def _mismatch(nearest: tuple[KeyDifference, ...]) -> NoValidCalibrationError:
    said = "; ".join(f"{d.attribute} {d.found or 'absent'}, calibrated with {d.calibrated or 'absent'}" for d in nearest)
    names = {d.attribute for d in nearest}
    if names == {"SoftwareVersions"}:
        return NoValidCalibrationError("CALIBRATION_EPOCH", f"{said}; scan the phantom with the present software")
    if names & DEVICE_ATTRIBUTES:
        return NoValidCalibrationError("NO_CALIBRATION", f"no phantom scan of this scanner: {said}; scan the phantom on it")
    return NoValidCalibrationError("CALIBRATION_KEY_MISMATCH", f"{said}; scan the phantom with this protocol")


def _preference(series: CalibrationSeries, at: datetime, limits: ChoiceLimits) -> tuple[bool, int, float]:
    """In service first, then the preferred set-up, then the most recent scan."""
    ready = not commissioning_gap(series, at, limits.commissioning)
    order = limits.setup_preference
    place = order.index(series.key.setup) if series.key.setup in order else len(order)
    nearest = min(abs((c.acquired - at).total_seconds()) for c in series.calibrations)
    return not ready, place, nearest


def _choose_in(
    header: SeriesHeader, series: CalibrationSeries, at: datetime, limits: ChoiceLimits
) -> ChosenCalibration:
    _check_state(series, at, limits)
    before = _nearest_before(series, at, limits)
    age = (at - before.acquired).total_seconds() / SECONDS_PER_DAY
    after = _next_after(series, before, at, limits)
    weight = _weight(before, after, at) if after else 0.0
    terms, flags = _differences(header, before, limits)
    age_terms, age_flags = _age(age, after is not None, limits)
    rejected_since = _rejected_after(series, at)
    return ChosenCalibration(
        calibration=before,
        line=interpolated(before.line, after.line, weight) if after else before.line,
        age_days=age,
        state=_state_text(series, age, limits),
        provisional=after is None and not series.for_this_run,
        bracketing_id=after.id if after else None,
        interpolation_weight=weight,
        terms=(*age_terms, *terms),
        flags=(*age_flags, *flags, *rejected_since, *_repeat_flags(series, at, limits)),
    )


def _check_state(series: CalibrationSeries, at: datetime, limits: ChoiceLimits) -> None:
    state, reasons = state_at(series, at, limits.commissioning)
    said = "; ".join(r.text for r in reasons)
    if state is SeriesState.STOPPED:
        raise NoValidCalibrationError("CALIBRATION_STOPPED", f"quality control stopped the series: {said}; scan the phantom again")
    if state is SeriesState.COMMISSIONING and _has_scans(series, at):
        raise NoValidCalibrationError("CALIBRATION_COMMISSIONING", f"{said}; scan the phantom again or declare the key commissioned")
    if state is SeriesState.COMMISSIONING:
        raise NoValidCalibrationError("CALIBRATION_EPOCH", "no accepted phantom scan since the scanner changed; scan the phantom")
    last = [c for c in series.in_epoch(at) if c.acquired <= at][-1:]
    if last and not last[0].accepted:
        raise NoValidCalibrationError("CALIBRATION_REJECTED_SINCE", f"the last phantom scan was rejected: {said}; scan it again")


def _has_scans(series: CalibrationSeries, at: datetime) -> bool:
    return bool(series.in_epoch(at)) or series.epoch_start(at) is None


def _nearest_before(series: CalibrationSeries, at: datetime, limits: ChoiceLimits) -> Calibration:
    accepted = [c for c in series.in_epoch(at) if c.accepted]
    before = [c for c in accepted if c.acquired <= at]
    if not before and (limits.allow_later_scan or series.for_this_run):
        before = accepted[:1]
    if not before:
        raise NoValidCalibrationError("NO_CALIBRATION", "no accepted phantom scan before this patient scan; scan the phantom first")
    age = abs((at - before[-1].acquired).total_seconds()) / SECONDS_PER_DAY
    if age > limits.max_days:
        text = f"nearest accepted phantom scan {age:.1f} days away, expected at most {limits.max_days:.0f}; scan the phantom"
        raise NoValidCalibrationError("CALIBRATION_EXPIRED", text)
    return before[-1]


def _next_after(
    series: CalibrationSeries, before: Calibration, at: datetime, limits: ChoiceLimits
) -> Calibration | None:
    """The next scan, if it is accepted, lies in the same epoch and no scanner calibration fell in between."""
    following = [c for c in series.in_epoch(at) if c.acquired > max(at, before.acquired)][:1]
    if before.acquired > at or not following or not following[0].accepted:
        return None
    after = following[0]
    days = (after.acquired - at).total_seconds() / SECONDS_PER_DAY
    return after if days <= limits.max_days and not _calibrated_between(before.header, after.header) else None


def _calibrated_between(one: SeriesHeader | None, other: SeriesHeader | None) -> bool:
    dates = [h.date_of_last_calibration if h else None for h in (one, other)]
    return all(dates) and dates[0] != dates[1]


def _weight(before: Calibration, after: Calibration, at: datetime) -> float:
    return (at - before.acquired).total_seconds() / (after.acquired - before.acquired).total_seconds()


def interpolated(before: CalibrationLine, after: CalibrationLine, weight: float) -> CalibrationLine:
    """Linear in time. The rods' residuals are systematic, so the covariance is the weighted mean, not smaller."""

    def mix(a: float, b: float) -> float:
        return (1.0 - weight) * a + weight * b

    covariance = (1.0 - weight) * np.array(before.covariance) + weight * np.array(after.covariance)
    (a, b), (c, d) = covariance.tolist()
    return CalibrationLine(
        material=before.material,
        sigma_ref=mix(before.sigma_ref, after.sigma_ref),
        beta_ref=mix(before.beta_ref, after.beta_ref),
        sigma_ct=mix(before.sigma_ct, after.sigma_ct),
        beta_ct=mix(before.beta_ct, after.beta_ct),
        covariance=((a, b), (c, d)),
        r2=mix(before.r2, after.r2),
        see_hu=mix(before.see_hu, after.see_hu),
        residuals_hu=tuple(mix(x, y) for x, y in zip(before.residuals_hu, after.residuals_hu, strict=True)),
        degrees_of_freedom=min(before.degrees_of_freedom, after.degrees_of_freedom),
    )


def must_amend(first: CalibrationLine, second: CalibrationLine, bmd_mg_cm3: float, limits: ChoiceLimits | None = None) -> bool:
    """Does the final line move this BMD, reported with the first line, by more than the limit?"""
    hu = first.sigma_ct * bmd_mg_cm3 + first.beta_ct
    return abs(second.to_bmd_mg_cm3(hu) - bmd_mg_cm3) > (limits or ChoiceLimits()).amend_mg_cm3


def _state_text(series: CalibrationSeries, age: float, limits: ChoiceLimits) -> str:
    if series.for_this_run:
        return "commissioned for this run"
    return "normal" if abs(age) <= limits.normal_days else "degraded"


def _age(age: float, bracketed: bool, limits: ChoiceLimits) -> tuple[tuple[UncertaintyTerm, ...], tuple[Reason, ...]]:
    aged = abs(age) > limits.normal_days
    drift = limits.u_degraded_mg_cm3 if aged and not bracketed else limits.u_drift_mg_cm3
    terms = (
        UncertaintyTerm("reproducibility", limits.u_reproducibility_mg_cm3, True),
        UncertaintyTerm("drift", drift, True),
    )
    text = f"nearest phantom scan {abs(age):.1f} days {'before' if age >= 0 else 'after'}, expected within {limits.normal_days:.0f}"
    return terms, (reason("CALIBRATION_AGED", text),) if aged else ()


def _rejected_after(series: CalibrationSeries, at: datetime) -> tuple[Reason, ...]:
    following = [c for c in series.in_epoch(at) if c.acquired > at][:1]
    if following and not following[0].accepted:
        return (reason("CALIBRATION_REJECTED_SINCE", "the phantom scan after this patient scan was rejected"),)
    return ()


def _repeat_flags(series: CalibrationSeries, at: datetime, limits: ChoiceLimits) -> tuple[Reason, ...]:
    state, reasons = state_at(series, at, limits.commissioning)
    return tuple(r for r in reasons if r.code in ("QC_REPEAT", "QC_TREND")) if state is not SeriesState.STOPPED else ()


def _differences(
    header: SeriesHeader, calibration: Calibration, limits: ChoiceLimits
) -> tuple[tuple[UncertaintyTerm, ...], tuple[Reason, ...]]:
    """Soft differences between the patient scan and the phantom scan, as terms and flags."""
    phantom = calibration.header
    if phantom is None:
        return (), (reason("CALIBRATION_UNKNOWN_SOFT", "the phantom scan's header is not stored"),)
    terms, flags = _position(header, phantom, limits)
    if not header.device_serial_number:
        flags.append(reason("CALIBRATION_UNKNOWN_SOFT", "DeviceSerialNumber absent in both scans; the site lets it be absent"))
    for name, a, b, ratio in (
        ("ReconstructionDiameter", header.reconstruction_diameter_mm, phantom.reconstruction_diameter_mm, limits.max_diameter_ratio),
        ("SliceThickness", header.slice_thickness_mm, phantom.slice_thickness_mm, limits.max_thickness_ratio),
        ("SpiralPitchFactor", header.spiral_pitch_factor, phantom.spiral_pitch_factor, 1.01),
    ):
        if a and b and max(a, b) / min(a, b) > ratio:
            flags.append(reason("CALIBRATION_SOFT_DIFFERENCE", f"{name} {a:g}, phantom scan {b:g}"))
            terms.append(UncertaintyTerm(f"differs: {name}", limits.u_soft_mg_cm3, True))
    key = calibration.key
    for name, a, b in zip(("FilterType", "DataCollectionDiameter"), _parts(calibration_key(header, "", key.setup)), _parts(key), strict=True):
        if bool(a) != bool(b):
            flags.append(reason("CALIBRATION_UNKNOWN_SOFT", f"{name} {a or 'absent'}, phantom scan {b or 'absent'}"))
            terms.append(UncertaintyTerm(f"unknown: {name}", limits.u_soft_mg_cm3, True))
    if _calibrated_between(header, phantom):
        dates = f"DateOfLastCalibration {header.date_of_last_calibration}, phantom scan {phantom.date_of_last_calibration}"
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
    text = f"table height differs by {difference:.0f} mm from the phantom scan's, expected within {limits.table_height_mm:.0f}"
    if difference > limits.max_table_height_mm:
        raise NoValidCalibrationError("CALIBRATION_TABLE_HEIGHT", f"{text}, refused beyond {limits.max_table_height_mm:.0f}")
    if difference > limits.table_height_mm:
        return [UncertaintyTerm("position", limits.u_position_beyond_mg_cm3, True)], [reason("CALIBRATION_TABLE_HEIGHT", text)]
    return [UncertaintyTerm("position", limits.u_position_mg_cm3, True)], []


def _other_setups(
    matching: Sequence[CalibrationSeries], chosen: CalibrationSeries, at: datetime, limits: ChoiceLimits
) -> tuple[tuple[float, CalibrationLine], ...]:
    """(water-equivalent diameter, line) of other set-ups that are in service and fresh."""
    found = []
    for series in matching:
        accepted = [c for c in series.in_epoch(at) if c.accepted and abs((at - c.acquired).total_seconds()) <= limits.max_days * SECONDS_PER_DAY]
        same = series is not chosen and series.key.phantom_serial == chosen.key.phantom_serial
        if same and accepted and not commissioning_gap(series, at, limits.commissioning):
            nearest = min(accepted, key=lambda c: abs((c.acquired - at).total_seconds()))
            found.append((nearest.measurement.water_equivalent_diameter_mm, nearest.line))
    return tuple(sorted(found, key=lambda pair: pair[0]))
