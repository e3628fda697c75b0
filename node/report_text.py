"""The sentences of the readable report, the refusal and the PDF: pure functions of the result.

Written for a radiologist in a hurry: number, unit, uncertainty, class and limits first; ASCII only, so that they can be
stored in every character set. Uncertainties are expanded by the coverage factor 2 (GUM, section 6.2).
"""

from collections.abc import Iterable

from analysis.refusals import REASONS
from analysis.results import (
    BmdSummary,
    ChosenCalibration,
    Classification,
    LongitudinalChange,
    PatientResult,
    ProtocolFinding,
    Reason,
    Reference,
    Severity,
    VertebraBmd,
)
from node.segments import levels_name
from node.source_headers import ascii_text

COVERAGE_FACTOR = 2.0
NOT_A_T_SCORE = "Volumetric density by quantitative CT; not a DXA T-score, do not apply T-score criteria."


def vertebra_sentence(vertebra: VertebraBmd, material: str) -> str:
    """One line with level, value, unit, uncertainty, CT numbers and volume."""
    return (
        f"{vertebra.level}: {_density(vertebra.bmd_mg_cm3, vertebra.u_bmd_mg_cm3, material)}, "
        f"mean {vertebra.mean_hu:.0f} HU, SD {vertebra.sd_hu:.0f} HU, VOI {vertebra.voi_volume_mm3 / 1000:.1f} cm3"
    )


def summary_sentences(summary: BmdSummary) -> tuple[str, ...]:
    """The mean with its class and limits, whether it is borderline, and what it is not."""
    density = _density(summary.bmd_mg_cm3, summary.u_bmd_mg_cm3, summary.material)
    sentences = [f"{_mean_of(summary.levels)}: {density}: {_category(summary)}."]
    if summary.borderline:
        sentences.append("Borderline: a category limit lies within the uncertainty of this value.")
    sentences.extend(f"{item.level} was not measured: {reason_text(item.reason)}" for item in summary.rejected)
    if summary.reference is not None:
        sentences.append(reference_sentence(summary.reference))
    sentences.append(NOT_A_T_SCORE)
    return tuple(ascii_text(sentence) for sentence in sentences)


def limits_text(summary: BmdSummary) -> str:
    low, high = summary.limits_mg_cm3
    return (f"osteoporosis below {low:g}, osteopenia {low:g} to {high:g}, normal above {high:g} mg/cm3 "
            f"({summary.material})")


def calibration_sentence(chosen: ChosenCalibration) -> str:
    """Phantom, scan date, age, slope, intercept, material and state, in one line."""
    calibration, line = chosen.calibration, chosen.line
    when = "before" if chosen.age_days >= 0 else "after"
    return ascii_text(
        f"Calibration: phantom {calibration.phantom_serial} ({calibration.phantom_type}), scanned "
        f"{calibration.acquired:%Y-%m-%d %H:%M} UTC, {abs(chosen.age_days):.1f} days {when} this scan; slope "
        f"{line.sigma_ct:.4f} HU per mg/cm3, intercept {line.beta_ct:.2f} HU, {line.material}-equivalent; "
        f"{_calibration_state(chosen)}."
    )


def scan_sentences(findings: Iterable[ProtocolFinding]) -> tuple[str, ...]:
    """What deviates from the protocol; one sentence that says so when nothing does."""
    sentences = tuple(ascii_text(_finding(item)) for item in findings if item.severity is not Severity.AS_PROTOCOL)
    return sentences or ("Scan: as protocol.",)


def flag_sentences(result: PatientResult) -> tuple[str, ...]:
    """Every quality flag of the result, its mean, its vertebrae and its calibration, once."""
    flags = [f"Quality flag: {reason_text(flag)}" for flag in all_flags(result)]
    return tuple(flags) or ("Quality flags: none.",)


def all_flags(result: PatientResult) -> tuple[Reason, ...]:
    groups = [result.flags]
    if result.summary is not None:
        groups.append(result.summary.flags)
    if result.chosen is not None:
        groups.append(result.chosen.flags)
    if result.segmentation is not None:
        groups.append(result.segmentation.flags)
    groups.extend(
        tuple(Reason(flag.code, f"{vertebra.level}: {flag.text}") for flag in vertebra.flags)
        for vertebra in result.vertebrae
    )
    return tuple(dict.fromkeys(flag for group in groups for flag in group))


def reason_text(reason: Reason) -> str:
    """What the code means and what was found: "Slices are missing: gap of 2.5 mm at z = -312.5 mm"."""
    known = REASONS.get(reason.code)
    return ascii_text(reason.text if known is None else f"{known.meaning}: {reason.text}").rstrip(".") + "."


def action_text(reason: Reason) -> str:
    """What to do about it; empty when the table says nothing."""
    known = REASONS.get(reason.code)
    return "" if known is None else ascii_text(f"What to do: {known.action}.")


def reference_sentence(reference: Reference) -> str:
    return ascii_text(
        f"Population: Z-score {reference.z_score:+.1f}, percentile {reference.percentile:.0f} of "
        f"{reference.population} ({reference.source})."
    )


def change_sentence(change: LongitudinalChange) -> str:
    verdict = (
        "exceeds" if change.significant else "does not exceed"
    )
    return (
        f"Change since {change.earlier_acquired:%Y-%m-%d} ({change.earlier_bmd_mg_cm3:.1f} mg/cm3): "
        f"{change.change_mg_cm3:+.1f} mg/cm3, which {verdict} the least significant change of "
        f"{change.least_significant_change_mg_cm3:.1f} mg/cm3."
    )


def budget_sentence(summary: BmdSummary) -> str:
    terms = ", ".join(f"{term.name} {term.u_mg_cm3:.1f}" for term in summary.terms)
    return ascii_text(f"Uncertainty budget of the result (k=1, mg/cm3): {terms}; combined {summary.u_bmd_mg_cm3:.1f}.")


def software_sentence(result: PatientResult, software_name: str) -> str:
    models = "".join(f"; {m.name} {m.version} (SHA-256 {m.sha256[:12]})" for m in result.models)
    return ascii_text(f"Software: {software_name} {result.software_version}{models}.")


def _density(bmd_mg_cm3: float, u_mg_cm3: float, material: str) -> str:
    return f"{bmd_mg_cm3:.1f} mg/cm3 ({material}), uncertainty +/- {COVERAGE_FACTOR * u_mg_cm3:.1f} (k=2)"


def _mean_of(levels: tuple[str, ...]) -> str:
    if len(levels) == 1:
        return f"Only {levels[0]} was measured, this is not an L1-L2 mean"
    name = f"Mean of {' and '.join(levels)}"
    return name if levels_name(levels) == "L1-L2" else f"{name} (not the L1-L2 mean)"


def _category(summary: BmdSummary) -> str:
    low, high = summary.limits_mg_cm3
    if summary.classification is None:
        return f"no category, the limits {low:g} and {high:g} mg/cm3 are not for {summary.material}"
    where = {
        Classification.OSTEOPOROSIS: f"below {low:g} mg/cm3",
        Classification.OSTEOPENIA: f"{low:g} to {high:g} mg/cm3",
        Classification.NORMAL: f"above {high:g} mg/cm3",
    }
    return f"{summary.classification} ({where[summary.classification]})"


def _calibration_state(chosen: ChosenCalibration) -> str:
    if chosen.bracketing_id is not None:
        return f"interpolated with the next phantom scan (its weight {chosen.interpolation_weight:.2f})"
    return f"state {chosen.state}" + (", provisional until the next phantom scan" if chosen.provisional else "")


def _finding(item: ProtocolFinding) -> str:
    text = f"Scan: {item.attribute} {item.found} (protocol: {item.expected})"
    if item.severity is Severity.TOLERATED:
        return f"{text}, tolerated, adds {item.u_mg_cm3:.1f} mg/cm3 to the standard uncertainty."
    return f"{text}, refused."
