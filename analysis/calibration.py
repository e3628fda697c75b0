"""From measured rods to the line HU = sigma_CT * density + beta_CT, with every acceptance gate's number and verdict.

Mindways phantoms: HU - rho_H2O on rho_K2HPO4, then sigma_CT = sigma_ref - 0.2174 and beta_CT = beta_ref + 999.6
(QCT PRO User Guide v5.0, 2011: the water that the salt displaces). Hydroxyapatite phantoms: HU on density as it is.
A failed gate is a stored result with its reason, never an exception.
"""

from dataclasses import dataclass, replace
from uuid import UUID, uuid5

import numpy as np
from numpy.typing import NDArray

from analysis.errors import PhantomUnusableError
from analysis.gates import JudgedGate, gate_of, reasons_of
from analysis.refusals import reason
from analysis.results import (
    Calibration,
    CalibrationKey,
    CalibrationLine,
    Gate,
    Material,
    PhantomMeasurement,
    PhantomSetup,
    PhantomSpec,
    Reason,
    RodSpec,
    SeriesHeader,
)
from analysis.rod_fit import fit_rods, noise_hu, stated_covariance
from analysis.version import SOFTWARE_VERSION

# Water displaced by K2HPO4 in solution: rho_H2O = 999.6 - 0.2174 rho_K mg/cm3 (QCT PRO User Guide v5.0)
WATER_DISPLACED_PER_MG = 0.2174
WATER_MG_CM3 = 999.6
_ID_NAMESPACE = UUID("5f6f1d0a-7b1d-4c53-9a55-0a3b5b0f7a31")


@dataclass(frozen=True, slots=True)
class SigmaRange:
    """Accepted sigma_ref at one tube voltage; between two voltages the limits are interpolated."""

    kvp: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class CalibrationLimits:
    """Acceptance limits; defaults from physics tables and published phantom series, all set by the site."""

    min_r2: float = 0.999
    max_see_hu: float = 8.0
    max_residual_hu: float = 10.0
    sigma_ref_ranges: tuple[SigmaRange, ...] = (
        SigmaRange(80.0, 1.8, 2.5),
        SigmaRange(100.0, 1.5, 2.1),
        SigmaRange(120.0, 1.35, 1.85),
        SigmaRange(140.0, 1.25, 1.7),
    )
    hydroxyapatite_lowering: float = 0.25  # their slope holds no displaced water (0.2174 HU per mg/cm3)
    alone_widening: float = 0.12  # a phantom without a body reads steeper (less beam hardening)
    max_beta_ct_hu: float = 30.0
    bmd_levels_mg_cm3: tuple[float, float] = (80.0, 120.0)
    max_leave_one_out_mg_cm3: float = 3.0
    min_assignment_ratio: float = 4.0
    max_tilt_deg: float = 6.0
    min_rod_voxels: int = 200
    max_rod_sd_ratio: float = 1.6  # SD of one rod over the median SD of all
    max_axial_slope_hu_per_mm: float = 0.1  # beyond three of its standard errors
    # noise of the rods in a reading: a move of 3 mg/cm3 between two scans, which stops, is then 3 SD or more
    max_noise_mg_cm3: float = 1.0
    # standard uncertainty of a rod about the line where two rods leave no residual: as of a published five-rod scan
    two_rod_u_hu: float = 5.2


@dataclass(frozen=True, slots=True)
class FittedCalibration:
    """The line of one phantom scan, its gates, the reason of each failed one, and findings that reject nothing."""

    line: CalibrationLine
    gates: tuple[Gate, ...]
    reasons: tuple[Reason, ...]

    @property
    def accepted(self) -> bool:
        return all(gate.passed for gate in self.gates)


def fit_line(rods: tuple[RodSpec, ...], hu: NDArray[np.float64], material: Material) -> CalibrationLine:
    """The calibration line through rods in certificate order; rods certified with water use the two-density form."""
    two_density = all(rod.water_mg_cm3 is not None for rod in rods)
    fit = fit_rods(rods, hu)
    return CalibrationLine(
        material=material,
        sigma_ref=fit.sigma_ref,
        beta_ref=fit.beta_ref,
        sigma_ct=fit.sigma_ref - (WATER_DISPLACED_PER_MG if two_density else 0.0),
        beta_ct=fit.beta_ref + (WATER_MG_CM3 if two_density else 0.0),
        covariance=_as_tuples(fit.covariance),
        r2=fit.r2,
        see_hu=fit.see_hu,
        residuals_hu=tuple(float(r) for r in fit.residuals_hu),
        degrees_of_freedom=fit.degrees_of_freedom,
    )


def _as_tuples(covariance: NDArray[np.float64]) -> tuple[tuple[float, float], tuple[float, float]]:
    (a, b), (c, d) = covariance.tolist()
    return (a, b), (c, d)


def fit_calibration(
    measurement: PhantomMeasurement, spec: PhantomSpec, kvp: float, limits: CalibrationLimits | None = None
) -> FittedCalibration:
    """Fit the line and judge it.

    Raises
    ------
    ValueError : the measurement's rods are not those of `spec`
    """
    limits = limits or CalibrationLimits()
    hu = rod_hu(measurement, spec)
    line = fit_line(spec.rods, hu, spec.material)
    if line.degrees_of_freedom == 0:
        line = replace(line, covariance=_as_tuples(stated_covariance(spec.rods, limits.two_rod_u_hu)))
    judged = (*_line_gates(line, kvp, measurement.setup, limits), *_rod_gates(measurement, limits))
    judged += (*_noise_gates(measurement, spec, line, limits), *_leave_one_out_gates(spec, hu, line, limits))
    found = (*reasons_of(judged), *_diagnostics(line, limits))
    return FittedCalibration(line, tuple(gate for _, gate in judged), found)


def _diagnostics(line: CalibrationLine, limits: CalibrationLimits) -> tuple[Reason, ...]:
    if line.degrees_of_freedom > 0:
        return ()
    text = f"two rods leave no residual; the line's uncertainty is that of {limits.two_rod_u_hu:.1f} HU per rod"
    return (reason("NO_FIT_DIAGNOSTICS", text),)


def rod_hu(measurement: PhantomMeasurement, spec: PhantomSpec) -> NDArray[np.float64]:
    """Mean HU of the rods in certificate order, (n_rods,)."""
    by_name = {rod.name: rod.hu for rod in measurement.rods}
    if set(by_name) != {rod.name for rod in spec.rods}:
        raise ValueError(f"measured rods {sorted(by_name)}, certificate {[rod.name for rod in spec.rods]}")
    return np.array([by_name[rod.name] for rod in spec.rods])


def sigma_ref_bounds(kvp: float, setup: PhantomSetup, limits: CalibrationLimits) -> tuple[float, float]:
    """Limits of sigma_ref at this tube voltage; wider above when the phantom lay alone."""
    ranges = sorted(limits.sigma_ref_ranges, key=lambda r: r.kvp)
    voltages = [r.kvp for r in ranges]
    low = float(np.interp(kvp, voltages, [r.low for r in ranges]))
    high = float(np.interp(kvp, voltages, [r.high for r in ranges]))
    return low, high * (1.0 + (limits.alone_widening if setup is PhantomSetup.ALONE else 0.0))


def _line_gates(
    line: CalibrationLine, kvp: float, setup: PhantomSetup, limits: CalibrationLimits
) -> tuple[JudgedGate, ...]:
    beta = (-limits.max_beta_ct_hu, limits.max_beta_ct_hu)
    low, high = sigma_ref_bounds(kvp, setup, limits)
    low -= limits.hydroxyapatite_lowering if line.material is Material.HA else 0.0
    return (
        *(_scatter_gates(line, limits) if line.degrees_of_freedom > 0 else ()),
        gate_of("GATE_SIGMA", "sigma_ref", line.sigma_ref, (low, high)),
        gate_of("GATE_BETA", "beta_ct_hu", line.beta_ct, beta),
    )


def _scatter_gates(line: CalibrationLine, limits: CalibrationLimits) -> tuple[JudgedGate, ...]:
    largest = max(abs(r) for r in line.residuals_hu)
    return (
        gate_of("GATE_R2", "r2", line.r2, (limits.min_r2, None)),
        gate_of("GATE_SEE", "see_hu", line.see_hu, (None, limits.max_see_hu)),
        gate_of("GATE_RESIDUAL", "max_residual_hu", largest, (None, limits.max_residual_hu)),
    )


def _rod_gates(measurement: PhantomMeasurement, limits: CalibrationLimits) -> tuple[JudgedGate, ...]:
    rods = measurement.rods
    sds = np.array([rod.sd_hu for rod in rods])
    sd_ratio = float(sds.max() / max(float(np.median(sds)), 1.0))
    slope = max(max(abs(rod.axial_slope_hu_per_mm) - 3.0 * rod.axial_slope_se_hu_per_mm, 0.0) for rod in rods)
    voxels = min(rod.n_voxels for rod in rods)
    ratio = limits.min_assignment_ratio
    return (
        gate_of("GATE_ASSIGNMENT", "assignment_ratio", measurement.assignment_ratio, (ratio, None)),
        gate_of("GATE_TILT", "tilt_deg", measurement.tilt_deg, (None, limits.max_tilt_deg)),
        gate_of("GATE_VOXELS", "min_rod_voxels", voxels, (limits.min_rod_voxels, None)),
        gate_of("GATE_ROD_SD", "max_rod_sd_ratio", sd_ratio, (None, limits.max_rod_sd_ratio)),
        gate_of("GATE_AXIAL_SLOPE", "axial_slope_hu_per_mm", slope, (None, limits.max_axial_slope_hu_per_mm)),
    )


def _noise_gates(
    measurement: PhantomMeasurement, spec: PhantomSpec, line: CalibrationLine, limits: CalibrationLimits
) -> tuple[JudgedGate, ...]:
    by_name = {rod.name: rod.standard_error_hu for rod in measurement.rods}
    errors = np.array([by_name[rod.name] for rod in spec.rods])
    return tuple(
        gate_of("GATE_STANDARD_ERROR", f"noise_{level:.0f}_mg_cm3", noise, (None, limits.max_noise_mg_cm3))
        for level in limits.bmd_levels_mg_cm3
        for noise in [noise_hu(spec.rods, errors, level) / abs(line.sigma_ct)]
    )


def _leave_one_out_gates(
    spec: PhantomSpec, hu: NDArray[np.float64], line: CalibrationLine, limits: CalibrationLimits
) -> tuple[JudgedGate, ...]:
    if len(spec.rods) < 4:  # dropping one of three leaves no check of the line
        return ()
    high = limits.max_leave_one_out_mg_cm3
    return tuple(
        gate_of("GATE_LEAVE_ONE_OUT", f"leave_one_out_{level:.0f}_mg_cm3", shift, (None, high))
        for level in limits.bmd_levels_mg_cm3
        for shift in [largest_leave_one_out_shift_mg_cm3(spec, hu, line, level)]
    )


def largest_leave_one_out_shift_mg_cm3(
    spec: PhantomSpec, hu: NDArray[np.float64], line: CalibrationLine, level_mg_cm3: float
) -> float:
    """How far a reading at `level_mg_cm3` moves when the worst single rod is left out of the fit."""
    at_level = line.sigma_ct * level_mg_cm3 + line.beta_ct
    shifts = []
    for left_out in range(len(spec.rods)):
        kept = [i for i in range(len(spec.rods)) if i != left_out]
        other = fit_line(tuple(spec.rods[i] for i in kept), hu[kept], spec.material)
        shifts.append(abs(other.to_bmd_mg_cm3(at_level) - level_mg_cm3))
    return max(shifts)


def normalised(text: str | None) -> str:
    """Upper case, single spaces; "" when absent."""
    return " ".join((text or "").upper().split())


def calibration_key(header: SeriesHeader, phantom_serial: str, setup: PhantomSetup) -> CalibrationKey:
    """The hard key of a scan; absent text is "", an absent voltage 0: `analysis.calibration_choice` judges gaps."""
    diameter = header.data_collection_diameter_mm
    return CalibrationKey(
        manufacturer=normalised(header.manufacturer),
        manufacturer_model_name=normalised(header.manufacturer_model_name),
        device_serial_number=normalised(header.device_serial_number),
        software_epoch=normalised(header.software_versions),
        kvp=round(header.kvp, 1) if header.kvp else 0.0,
        filter_type=f"{normalised(header.filter_type)}/{'' if diameter is None else f'{diameter:.0f}'}",
        convolution_kernel=normalised(header.convolution_kernel),
        phantom_serial=phantom_serial,
        setup=setup,
    )


def build_calibration(
    header: SeriesHeader,
    spec: PhantomSpec,
    measurement: PhantomMeasurement,
    limits: CalibrationLimits | None = None,
) -> Calibration:
    """Fit, judge and sign one phantom scan.

    Raises
    ------
    PhantomUnusableError : CALIBRATION_KEY_MISSING, the header holds no tube voltage or acquisition time
    """
    if not header.kvp or header.acquired is None:
        text = f"series {header.series_instance_uid}: KVP or acquisition time absent; a calibration needs both"
        raise PhantomUnusableError("CALIBRATION_KEY_MISSING", text)
    fitted = fit_calibration(measurement, spec, header.kvp, limits)
    return Calibration(
        id=calibration_id(header.series_instance_uid),
        series_instance_uid=header.series_instance_uid,
        phantom_serial=spec.serial,
        phantom_type=spec.phantom_type,
        key=calibration_key(header, spec.serial, measurement.setup),
        acquired=header.acquired,
        line=fitted.line,
        measurement=measurement,
        gates=fitted.gates,
        accepted=fitted.accepted,
        reasons=fitted.reasons,
        software_version=SOFTWARE_VERSION,
        header=header,
    )


def calibration_id(series_instance_uid: str) -> str:
    """The same series measured by the same software version gives the same id."""
    return str(uuid5(_ID_NAMESPACE, f"{series_instance_uid}/{SOFTWARE_VERSION}"))
