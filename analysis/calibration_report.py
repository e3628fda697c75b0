"""A calibration as the plain values of `calibration.json`."""

from analysis.results import Calibration, Gate, Reason, RodMeasurement

Plain = str | float | int | bool | None | list["Plain"] | dict[str, "Plain"]


def calibration_report(calibration: Calibration) -> dict[str, Plain]:
    """Rods, line, covariance, gates and verdict; densities are those of `material`."""
    line, measurement = calibration.line, calibration.measurement
    return {
        "id": calibration.id,
        "series_instance_uid": calibration.series_instance_uid,
        "software_version": calibration.software_version,
        "phantom_serial": calibration.phantom_serial,
        "phantom_type": calibration.phantom_type,
        "material": str(line.material),
        "acquired": calibration.acquired.isoformat(),
        "kvp": calibration.key.kvp,
        "setup": str(measurement.setup),
        "tilt_deg": measurement.tilt_deg,
        "water_equivalent_diameter_mm": measurement.water_equivalent_diameter_mm,
        "assignment_ratio": measurement.assignment_ratio,
        "rods": [_rod(rod) for rod in measurement.rods],
        "sigma_ref": line.sigma_ref,
        "beta_ref": line.beta_ref,
        "sigma_ct": line.sigma_ct,
        "beta_ct": line.beta_ct,
        "r2": line.r2,
        "see_hu": line.see_hu,
        "residuals_hu": list(line.residuals_hu),
        "covariance": [list(row) for row in line.covariance],
        "degrees_of_freedom": line.degrees_of_freedom,
        "gates": [_gate(gate) for gate in calibration.gates],
        "accepted": calibration.accepted,
        "reasons": [_reason(r) for r in calibration.reasons],
        "findings": [_reason(r) for r in measurement.findings],
    }


def _rod(rod: RodMeasurement) -> dict[str, Plain]:
    return {
        "name": rod.name,
        "hu": rod.hu,
        "sd_hu": rod.sd_hu,
        "n_voxels": rod.n_voxels,
        "centre_lps_mm": list(rod.centre_lps_mm),
        "standard_error_hu": rod.standard_error_hu,
        "axial_slope_hu_per_mm": rod.axial_slope_hu_per_mm,
    }


def _gate(gate: Gate) -> dict[str, Plain]:
    return {"name": gate.name, "value": gate.value, "low": gate.low, "high": gate.high, "passed": gate.passed}


def _reason(reason: Reason) -> dict[str, Plain]:
    return {"code": reason.code, "text": reason.text}
