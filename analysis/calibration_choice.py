"""Which calibration may a patient scan use, and what does it cost in uncertainty?

The hard key must match: device, software epoch, tube voltage, filter and scan field, kernel. Soft differences widen
the uncertainty and are said. The line is that of the nearest accepted scan before, provisional until the next accepted
one brackets the patient scan; then it is interpolated in time (asynchronous QCT: FDA K140342 allows phantom scans
before or after the patient). Nothing reaches across an epoch break or a rejected scan.
"""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

import numpy as np

from analysis.calibration import calibration_key
from analysis.calibration_match import (
    ChoiceLimits as ChoiceLimits,
)
from analysis.calibration_match import (
    KeyDifference,
    calibrated_between,
    key_differences,
    soft_differences,
)
from analysis.calibration_state import CalibrationSeries, SeriesState, commissioning_gap, state_at
from analysis.errors import NoValidCalibrationError
from analysis.refusals import reason
from analysis.results import (
    Calibration,
    CalibrationLine,
    ChosenCalibration,
    PhantomSetup,
    Reason,
    SeriesHeader,
    UncertaintyTerm,
)

SECONDS_PER_DAY = 86400.0


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
        text = f"{', '.join(absent)} absent in series {header.series_instance_uid}; a calibration must match it"
        raise NoValidCalibrationError("CALIBRATION_KEY_MISSING", text)
    return header.acquired


def _matching(
    header: SeriesHeader, series: Sequence[CalibrationSeries], limits: ChoiceLimits
) -> tuple[CalibrationSeries, ...]:
    wanted = calibration_key(header, "", PhantomSetup.ALONE)
    filled = [s for s in series if s.calibrations]
    if not filled:
        raise NoValidCalibrationError(
            "NO_CALIBRATION", "no phantom scan is stored; expected one with this protocol; scan the phantom"
        )
    differences = [(key_differences(wanted, s.key, limits.kvp_tolerance), s) for s in filled]
    matching = tuple(s for found, s in differences if not found)
    if not matching:
        raise _mismatch(min((found for found, _ in differences), key=len))
    return matching


DEVICE_ATTRIBUTES = frozenset({"Manufacturer", "ManufacturerModelName", "DeviceSerialNumber"})


def _mismatch(nearest: tuple[KeyDifference, ...]) -> NoValidCalibrationError:
    said = "; ".join(
        f"{d.attribute} {d.found or 'absent'}, calibrated with {d.calibrated or 'absent'}" for d in nearest
    )
    names = {d.attribute for d in nearest}
    if names == {"SoftwareVersions"}:
        return NoValidCalibrationError("CALIBRATION_EPOCH", f"{said}; scan the phantom with the present software")
    if names & DEVICE_ATTRIBUTES:
        return NoValidCalibrationError(
            "NO_CALIBRATION", f"no phantom scan of this scanner: {said}; scan the phantom on it"
        )
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
    terms, flags = soft_differences(header, before, limits)
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
        flags=(*age_flags, *flags, *_unchecked_line(before), *rejected_since, *_repeat_flags(series, at, limits)),
    )


def _check_state(series: CalibrationSeries, at: datetime, limits: ChoiceLimits) -> None:
    state, reasons = state_at(series, at, limits.commissioning)
    said = "; ".join(r.text for r in reasons)
    if state is SeriesState.STOPPED:
        raise NoValidCalibrationError(
            "CALIBRATION_STOPPED", f"quality control stopped the series: {said}; scan the phantom again"
        )
    if state is SeriesState.COMMISSIONING and _has_scans(series, at):
        raise NoValidCalibrationError(
            "CALIBRATION_COMMISSIONING", f"{said}; scan the phantom again or declare the key commissioned"
        )
    if state is SeriesState.COMMISSIONING:
        raise NoValidCalibrationError(
            "CALIBRATION_EPOCH", "no accepted phantom scan since the scanner changed; scan the phantom"
        )
    last = [c for c in series.in_epoch(at) if c.acquired <= at][-1:]
    if last and not last[0].accepted:
        raise NoValidCalibrationError(
            "CALIBRATION_REJECTED_SINCE", f"the last phantom scan was rejected: {said}; scan it again"
        )


def _has_scans(series: CalibrationSeries, at: datetime) -> bool:
    return bool(series.in_epoch(at)) or series.epoch_start(at) is None


def _nearest_before(series: CalibrationSeries, at: datetime, limits: ChoiceLimits) -> Calibration:
    accepted = [c for c in series.in_epoch(at) if c.accepted]
    before = [c for c in accepted if c.acquired <= at]
    if not before and (limits.allow_later_scan or series.for_this_run):
        before = accepted[:1]
    if not before:
        raise NoValidCalibrationError(
            "NO_CALIBRATION", "no accepted phantom scan before this patient scan; scan the phantom first"
        )
    age = abs((at - before[-1].acquired).total_seconds()) / SECONDS_PER_DAY
    if age > limits.max_days:
        text = f"nearest accepted phantom scan {age:.1f} days away, expected within {limits.max_days:.0f}; scan it"
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
    return after if days <= limits.max_days and not calibrated_between(before.header, after.header) else None


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


def must_amend(
    first: CalibrationLine, second: CalibrationLine, bmd_mg_cm3: float, limits: ChoiceLimits | None = None
) -> bool:
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
    side = "before" if age >= 0 else "after"
    text = f"nearest phantom scan {abs(age):.1f} days {side}, expected within {limits.normal_days:.0f}"
    return terms, (reason("CALIBRATION_AGED", text),) if aged else ()


def _rejected_after(series: CalibrationSeries, at: datetime) -> tuple[Reason, ...]:
    following = [c for c in series.in_epoch(at) if c.acquired > at][:1]
    if following and not following[0].accepted:
        return (reason("CALIBRATION_REJECTED_SINCE", "the phantom scan after this patient scan was rejected"),)
    return ()


def _unchecked_line(calibration: Calibration) -> tuple[Reason, ...]:
    return tuple(r for r in calibration.reasons if r.code == "NO_FIT_DIAGNOSTICS")


def _repeat_flags(series: CalibrationSeries, at: datetime, limits: ChoiceLimits) -> tuple[Reason, ...]:
    state, reasons = state_at(series, at, limits.commissioning)
    told = tuple(r for r in reasons if r.code in ("QC_REPEAT", "QC_TREND", "QC_PREVIOUS"))
    return told if state is not SeriesState.STOPPED else ()


def _other_setups(
    matching: Sequence[CalibrationSeries], chosen: CalibrationSeries, at: datetime, limits: ChoiceLimits
) -> tuple[tuple[float, CalibrationLine], ...]:
    """(water-equivalent diameter, line) of other set-ups that are in service and fresh."""
    found = []
    for series in matching:
        accepted = [
            c
            for c in series.in_epoch(at)
            if c.accepted and abs((at - c.acquired).total_seconds()) <= limits.max_days * SECONDS_PER_DAY
        ]
        same = series is not chosen and series.key.phantom_serial == chosen.key.phantom_serial
        if same and accepted and not commissioning_gap(series, at, limits.commissioning):
            nearest = min(accepted, key=lambda c: abs((c.acquired - at).total_seconds()))
            found.append((nearest.measurement.water_equivalent_diameter_mm, nearest.line))
    return tuple(sorted(found, key=lambda pair: pair[0]))
