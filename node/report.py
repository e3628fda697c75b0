"""`report.json`: everything the node knows of one patient series, machine readable, units in the field names."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from analysis.refusals import advice
from analysis.results import (
    ChosenCalibration,
    PatientResult,
    ProtocolFinding,
    Reason,
    VertebraBmd,
    VertebraFeatures,
)
from analysis.version import SOFTWARE_NAME, SOFTWARE_VERSION

SCHEMA = "qct-node/report/1"


def patient_report(result: PatientResult) -> dict[str, Any]:
    """The report as plain values, ready for `json.dumps`."""
    summary = result.summary
    return {
        "schema": SCHEMA,
        "status": result.status,
        "reasons": reasons(result.reasons),
        "flags": reasons(result.flags),
        "series_instance_uid": result.header.series_instance_uid,
        "study_instance_uid": result.header.study_instance_uid,
        "acquired": _time(result.header.acquired),
        "scanner": {
            "manufacturer": result.header.manufacturer,
            "manufacturer_model_name": result.header.manufacturer_model_name,
            "device_serial_number": result.header.device_serial_number,
            "kvp": result.header.kvp,
        },
        "protocol": [_finding(f) for f in result.protocol],
        "calibration": _calibration(result.chosen) if result.chosen else None,
        "vertebrae": [_vertebra(v) for v in result.vertebrae],
        "levels": list(summary.levels) if summary else [],
        "bmd_mg_cm3": summary.bmd_mg_cm3 if summary else None,
        "u_bmd_mg_cm3": summary.u_bmd_mg_cm3 if summary else None,
        "material": str(summary.material) if summary else None,
        "voi_rule_version": summary.voi_rule_version if summary else None,
        "classification": str(summary.classification) if summary and summary.classification else None,
        "limits_mg_cm3": list(summary.limits_mg_cm3) if summary else None,
        "borderline": summary.borderline if summary else None,
        "uncertainty_terms": [asdict(t) for t in summary.terms] if summary else [],
        "reference": asdict(summary.reference) if summary and summary.reference else None,
        "internal_check_mg_cm3": summary.internal_check_mg_cm3 if summary else None,
        "water_equivalent_diameter_mm": summary.water_equivalent_diameter_mm if summary else None,
        "rejected_vertebrae": [{"level": r.level, **asdict(r.reason)} for r in (summary.rejected if summary else ())],
        "segmentation": _segmentation(result),
        "change": _change(result),
        "radiomics": {f.level: _features(f) for f in result.features if f.values},
        "radiomics_not_evaluable": {f.level: asdict(f.reason) for f in result.features if f.reason},
        "radiomics_model": _prediction(result),
        "timings_s": dict(result.timings_s),
        "software": {"name": SOFTWARE_NAME, "version": result.software_version},
        "models": [asdict(m) for m in result.models],
    }


def unread_report(refusal: Reason, series_instance_uid: str, study_instance_uid: str) -> dict[str, Any]:
    """The report of a study whose images could not even be read: the same fields, empty."""
    lists = ("flags", "protocol", "vertebrae", "levels", "uncertainty_terms", "rejected_vertebrae", "models")
    values = ("acquired", "calibration", "bmd_mg_cm3", "u_bmd_mg_cm3", "material", "voi_rule_version", "classification",
              "radiomics_model")
    return {
        "schema": SCHEMA,
        "status": "refused",
        "reasons": reasons((refusal,)),
        "series_instance_uid": series_instance_uid,
        "study_instance_uid": study_instance_uid,
        **{name: [] for name in lists},
        **dict.fromkeys(values),
        "radiomics": {},
        "timings_s": {},
        "software": {"name": SOFTWARE_NAME, "version": SOFTWARE_VERSION},
    }


def reasons(found: tuple[Reason, ...]) -> list[dict[str, str]]:
    return [{"code": r.code, "text": r.text, "action": advice(r.code)} for r in found]


def _time(moment: datetime | None) -> str | None:
    return moment.isoformat() if moment else None


def _finding(finding: ProtocolFinding) -> dict[str, Any]:
    return {
        "attribute": finding.attribute,
        "found": finding.found,
        "expected": finding.expected,
        "severity": str(finding.severity),
        "u_mg_cm3": finding.u_mg_cm3,
    }


def _calibration(chosen: ChosenCalibration) -> dict[str, Any]:
    line, source = chosen.line, chosen.calibration
    return {
        "id": source.id,
        "material": str(line.material),
        "sigma_ref": line.sigma_ref,
        "beta_ref": line.beta_ref,
        "sigma_ct": line.sigma_ct,
        "beta_ct": line.beta_ct,
        "r2": line.r2,
        "see_hu": line.see_hu,
        "phantom_serial": source.phantom_serial,
        "phantom_type": source.phantom_type,
        "setup": str(source.key.setup),
        "acquired": _time(source.acquired),
        "age_days": chosen.age_days,
        "state": chosen.state,
        "provisional": chosen.provisional,
        "bracketing_id": chosen.bracketing_id,
        "interpolation_weight": chosen.interpolation_weight,
    }


def _vertebra(vertebra: VertebraBmd) -> dict[str, Any]:
    return {
        "level": vertebra.level,
        "bmd_mg_cm3": vertebra.bmd_mg_cm3,
        "u_bmd_mg_cm3": vertebra.u_bmd_mg_cm3,
        "sd_bmd_mg_cm3": vertebra.sd_bmd_mg_cm3,
        "mean_hu": vertebra.mean_hu,
        "sd_hu": vertebra.sd_hu,
        "n_voxels": vertebra.n_voxels,
        "voi_volume_mm3": vertebra.voi_volume_mm3,
        "voi_depth_mm": vertebra.voi_depth_mm,
        "voi_cancellous_fraction": vertebra.voi_cancellous_fraction,
        "voi_centre_lps_mm": list(vertebra.voi_centre_lps_mm),
        "level_confidence": vertebra.level_confidence,
        "uncertainty_terms": [asdict(t) for t in vertebra.terms],
        "flags": reasons(vertebra.flags),
    }


def _segmentation(result: PatientResult) -> dict[str, Any] | None:
    if result.segmentation is None:
        return None
    return {
        "anchors": list(result.segmentation.level_anchors),
        "levels": [asdict(level) for level in result.segmentation.levels],
    }


def _features(features: VertebraFeatures) -> Mapping[str, float]:
    return dict(zip(features.names, features.values, strict=True))


def _prediction(result: PatientResult) -> dict[str, Any] | None:
    if (prediction := result.prediction) is None:
        return None
    return {
        "name": prediction.model_name,
        "sha256": prediction.model_sha256,
        "demonstration": prediction.demonstration,
        "state": prediction.state,
        "classification": str(prediction.classification) if prediction.classification else None,
        "probabilities": dict(prediction.probabilities),
        "conformal_set": list(prediction.conformal_set),
        "conformal_level": prediction.conformal_level,
        "reasons": reasons(prediction.reasons),
    }


def _change(result: PatientResult) -> dict[str, Any] | None:
    if (change := result.change) is None:
        return None
    return asdict(change) | {"earlier_acquired": _time(change.earlier_acquired)}


def write_json(report: Mapping[str, Any], path: Path) -> None:
    """Write under a temporary name, then rename: a reader never sees half a report."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    temporary.rename(path)
