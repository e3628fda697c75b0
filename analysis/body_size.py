"""Body size: the water-equivalent diameter at the vertebrae and what it does to the calibration line.

Water-equivalent diameter as AAPM Report 220 (2014): D_w = 2 sqrt((mean HU / 1000 + 1) A / pi) over the body's section.
A longer path through water hardens the beam and lowers HU per mg/cm3: sigma ~ path^-0.14 (docs/bmd.md). The path counts
at the place that is measured, mean over the directions. Through the middle of a round body it is D_w, through its edge
D_w mean|cos| = 2/pi D_w. Rods in a pad below a body therefore read higher than a spine within it, at equal size too.
Scanners correct part of all this, so the effect on a given scanner is only known when the calibration series holds
set-ups of more than one size; then the line is interpolated, otherwise it is a term of the budget.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import scipy
from numpy.typing import NDArray

from analysis.refusals import reason
from analysis.results import CalibrationLine, ChosenCalibration, Reason, Segmentation, UncertaintyTerm
from analysis.volume import CtVolume

BODY_THRESHOLD_HU = -250.0
TABLE_OPENING_MM = 8.0  # the table's shell and blankets are thinner than this
MAX_EXPONENT = 0.25  # of sigma in the path; steeper is noise of the lines
COARSE_MM = 3.0  # pixel size at which the body is outlined


@dataclass(frozen=True, slots=True)
class SizeRule:
    """How size enters the result.

    model_exponent : sigma ~ path^-exponent, upper bound: polychromatic simulation without bone correction, and the
        largest residual on scanners, -5 % from 25 to 36 cm of water, both give 0.14 (docs/bmd.md)
    rod_path_share : mean path of the rays through the rods over D_w of their set-up; 2/pi for rods at the edge of a
        round body, 1 for rods inside it where a spine would be
    correct_position : move the line to the spine's path where set-ups of two sizes show how sigma follows it; off,
        since only an insert of known density inside a body can show that it is right on a scanner
    residual_fraction : standard uncertainty of BMD when the paths agree: clinical sd of asynchronous QCT 3.5 %
        (Dudle 2024) less the 2.4 % of the budget's other terms, in quadrature
    corrected_fraction : the same after interpolation between measured sizes
    max_extrapolation : of ln(D_w) beyond the measured sizes
    """

    model_exponent: float = 0.14
    rod_path_share: float = 0.64
    correct_position: bool = False
    residual_fraction: float = 0.025
    corrected_fraction: float = 0.020
    max_extrapolation: float = 0.15
    flag_difference_fraction: float = 0.25


@dataclass(frozen=True, slots=True)
class BodySize:
    """Median over the slices looked at; `truncated` when the body reaches the field of view's edge beside the spine."""

    water_equivalent_diameter_mm: float
    truncated_fraction: float
    truncated_near_spine: bool


def measure_body_size(volume: CtVolume, segmentation: Segmentation, levels: Sequence[str]) -> BodySize:
    """Water-equivalent diameter at the levels named (all found levels when none of them is found)."""
    found = [level for level in segmentation.levels if level.name in levels] or list(segmentation.levels)
    sizes, truncated, near = [], [], []
    for level in found:
        index = volume.to_index(np.array(level.centroid_lps_mm))
        slice_index = int(np.clip(round(float(index[0])), 0, volume.hu.shape[0] - 1))
        size, fraction, spine = _measure_slice(volume, slice_index, index[1:])
        sizes.append(size)
        truncated.append(fraction)
        near.append(spine)
    return BodySize(float(np.median(sizes)), float(np.median(truncated)), any(near))


def body_section(hu: NDArray[np.float32], pixel_mm: float) -> NDArray[np.bool_]:
    """The body in one slice without the table, holes (lung, gas) filled. hu : (rows, columns)."""
    tissue = hu > BODY_THRESHOLD_HU
    radius = TABLE_OPENING_MM / 2 / pixel_mm
    inner = scipy.ndimage.distance_transform_edt(np.pad(tissue, 1, mode="edge"))[1:-1, 1:-1] > radius
    pieces, count = scipy.ndimage.label(inner)
    if count == 0:
        return np.zeros_like(tissue)
    largest = pieces == 1 + int(np.argmax(np.bincount(pieces.ravel())[1:]))
    grown = scipy.ndimage.distance_transform_edt(~largest) <= radius
    filled: NDArray[np.bool_] = scipy.ndimage.binary_fill_holes(grown & tissue)
    return filled


def _measure_slice(volume: CtVolume, slice_index: int, spine_index: NDArray[np.float64]) -> tuple[float, float, bool]:
    """Diameter mm, part of the body's outline at the field of view's edge, and whether that is near the spine."""
    _, rows_mm, columns_mm = volume.spacing_mm
    step = max(1, round(COARSE_MM / rows_mm))
    hu = np.asarray(volume.hu[slice_index, ::step, ::step], dtype=np.float32)
    body = body_section(hu, rows_mm * step)
    area_mm2 = float(body.sum()) * rows_mm * columns_mm * step**2
    mean_hu = float(hu[body].mean()) if body.any() else -1000.0
    diameter_mm = 2.0 * float(np.sqrt(max(mean_hu / 1000.0 + 1.0, 0.0) * area_mm2 / np.pi))
    outside = _outside_field_of_view(hu)
    rim = body & scipy.ndimage.binary_dilation(outside, iterations=2)
    outline = body & ~scipy.ndimage.binary_erosion(body)
    fraction = float(rim.sum()) / max(float(outline.sum()) * 2.0, 1.0)
    rows, columns = np.nonzero(rim)
    distances = np.hypot((rows * step - spine_index[0]) * rows_mm, (columns * step - spine_index[1]) * columns_mm)
    return diameter_mm, min(fraction, 1.0), bool((distances < 60.0).any())


def _outside_field_of_view(hu: NDArray[np.float32]) -> NDArray[np.bool_]:
    """The frame around the image and the padding (replaced by -1024 and below) that touches it."""
    padding = np.pad(hu <= -1023.5, 1, constant_values=True)
    pieces, _ = scipy.ndimage.label(padding)
    outside: NDArray[np.bool_] = pieces == pieces[0, 0]
    frame = scipy.ndimage.binary_dilation(outside)[1:-1, 1:-1]
    return np.asarray(frame)


def correct_for_size(
    chosen: ChosenCalibration, diameter_mm: float, rule: SizeRule | None = None
) -> tuple[ChosenCalibration, tuple[UncertaintyTerm, ...], tuple[Reason, ...]]:
    """The calibration for a body of this size, as `chosen` with its line replaced where set-ups of two sizes exist.

    Returns
    -------
    chosen, terms relative to 100 mg/cm3, flags
    """
    rule = rule or SizeRule()
    measured = chosen.calibration.measurement.water_equivalent_diameter_mm
    lines = sorted([(measured, chosen.line), *chosen.setup_diameters], key=lambda pair: pair[0])
    sizes = [size for size, _ in lines]
    if sizes[-1] / sizes[0] > 1.1:
        line, beyond = _interpolated_line(lines, diameter_mm, rule)
        left_mg_cm3 = 100.0 * float(np.hypot(rule.corrected_fraction, rule.model_exponent * beyond / np.sqrt(3.0)))
        terms = (
            UncertaintyTerm("size correction", left_mg_cm3, True),
            UncertaintyTerm("rod position", 100.0 * _u_position(lines, rule), True),
        )
        return replace(chosen, line=line), terms, _size_flags(diameter_mm, sizes, rule)
    effect = rule.model_exponent * abs(float(np.log(diameter_mm / (rule.rod_path_share * measured))))
    # the true effect lies between nothing (fully corrected by the scanner) and the model's: rectangular
    fraction = float(np.hypot(rule.residual_fraction, effect / np.sqrt(3.0)))
    return chosen, (UncertaintyTerm("body size", 100.0 * fraction, True),), _size_flags(diameter_mm, sizes, rule)


def _u_position(lines: list[tuple[float, CalibrationLine]], rule: SizeRule) -> float:
    """Standard uncertainty, as a fraction, of rods that see another path than the spine.

    The exponent is the one between the smallest and the largest set-up, 0 to MAX_EXPONENT. Uncorrected, the effect lies
    between nothing and all of it; corrected, within half of it on either side: rectangular.
    """
    (smallest_mm, first), (largest_mm, last) = lines[0], lines[-1]
    exponent = -float(np.log(last.sigma_ct / first.sigma_ct) / np.log(largest_mm / smallest_mm))
    effect = float(np.clip(exponent, 0.0, MAX_EXPONENT)) * -float(np.log(rule.rod_path_share))
    return effect / float(np.sqrt(12.0 if rule.correct_position else 3.0))


def _interpolated_line(
    lines: list[tuple[float, CalibrationLine]], diameter_mm: float, rule: SizeRule
) -> tuple[CalibrationLine, float]:
    """Line at this size: ln sigma and beta linear in ln D_w; and how far ln D_w lies beyond the measured sizes.

    With `correct_position`, at the spine's path: that of rods in a set-up larger by 1 / rod_path_share.
    """
    logs = np.log([size for size, _ in lines])
    wanted = float(np.log(diameter_mm))
    used = float(np.clip(wanted, logs[0] - rule.max_extrapolation, logs[-1] + rule.max_extrapolation))
    used -= float(np.log(rule.rod_path_share)) if rule.correct_position else 0.0
    upper = int(np.clip(np.searchsorted(logs, used), 1, len(logs) - 1))
    share = (used - logs[upper - 1]) / max(logs[upper] - logs[upper - 1], 1e-6)
    below, above = lines[upper - 1][1], lines[upper][1]
    sigma = float(np.exp((1 - share) * np.log(below.sigma_ct) + share * np.log(above.sigma_ct)))
    beta = float((1 - share) * below.beta_ct + share * above.beta_ct)
    nearest = below if share < 0.5 else above
    line = replace(
        nearest,
        sigma_ct=sigma,
        beta_ct=beta,
        sigma_ref=nearest.sigma_ref + sigma - nearest.sigma_ct,
        beta_ref=nearest.beta_ref + beta - nearest.beta_ct,
    )
    beyond = max(logs[0] - wanted, wanted - logs[-1], 0.0)
    return line, float(beyond)


def _size_flags(diameter_mm: float, sizes: Sequence[float], rule: SizeRule) -> tuple[Reason, ...]:
    low, high = sizes[0] * (1 - rule.flag_difference_fraction), sizes[-1] * (1 + rule.flag_difference_fraction)
    if low <= diameter_mm <= high:
        return ()
    text = (
        f"water-equivalent diameter {diameter_mm:.0f} mm; calibrated at {', '.join(f'{size:.0f}' for size in sizes)} mm"
    )
    return (reason("BODY_SIZE", f"{text}; expected {low:.0f} to {high:.0f} mm"),)
