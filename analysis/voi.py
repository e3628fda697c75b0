"""The trabecular VOI: an oval, 9 mm deep, in the cancellous bone of one vertebral body.

An elliptical cylinder in the vertebra's own frame: parallel to the mean of both endplates, at mid-height, inside the
cancellous section with a margin to the cortex, moved forward of the basivertebral vein, covering about two thirds of
the section (QCT Pro: central trabecular elliptical VOI, Engelke 2009, Bone 44:566; depth and coverage from the site's
protocol). Bone islands, vein and vacuum inside it are left out by robust limits on both sides of the median, so that
texture and noise do not move the mean. Weights are the part of each voxel that lies inside.
"""

from dataclasses import replace

import numpy as np
import scipy
from numpy.typing import NDArray

from analysis.errors import VoiError
from analysis.refusals import reason
from analysis.results import Reason, Segmentation, Voi
from analysis.vertebra_frame import VertebraCrop, VertebraFrame, crop_vertebra, fit_frame
from analysis.voi_cylinder import cylinder_weights, outline_lps_mm
from analysis.voi_oval import Oval, fit_oval
from analysis.voi_rule import VoiRule
from analysis.voi_section import cancellous_section
from analysis.volume import CtVolume


def place_voi(volume: CtVolume, segmentation: Segmentation, level: str, rule: VoiRule | None = None) -> Voi:
    """Place the VOI in one vertebra.

    Raises
    ------
    VoiError
        VERTEBRA_MISSING, VOI_FRAME, VOI_MARGIN, VOI_COVERAGE or VOI_EXCLUSIONS.
    """
    rule = rule or VoiRule()
    crop = crop_vertebra(volume, segmentation, level)
    frame = fit_frame(crop, segmentation)
    _require_height(frame, rule, level)
    section = cancellous_section(crop, frame, rule)
    oval = fit_oval(section, rule, level)
    weights = cylinder_weights(crop.volume, frame, oval, rule.depth_mm)
    kept = weights * _inside_bone(crop) * ~_outliers(crop.volume, weights, rule)
    return _voi(crop, frame, (oval, section.area_mm2), (weights, kept), rule)


def _require_height(frame: VertebraFrame, rule: VoiRule, level: str) -> None:
    needed = rule.depth_mm + 2 * rule.margin_mm
    if frame.height_mm < needed:
        raise VoiError("VOI_MARGIN", f"{level} is {frame.height_mm:.1f} mm high; expected at least {needed:.1f} mm")


def _inside_bone(crop: VertebraCrop) -> NDArray[np.bool_]:
    """Voxels of the body that are not marked as cortex; the vein's mouth and the walls of islands fall out here."""
    return crop.cancellous if crop.cancellous.sum() > 0.5 * crop.body.sum() else crop.body


def _outliers(volume: CtVolume, weights: NDArray[np.float32], rule: VoiRule) -> NDArray[np.bool_]:
    """Voxels of bone islands, vein and vacuum: outside the robust limits of the smoothed image, or absolute limits.

    Limits lie symmetrically about the middle of the shortest half of the values (Rousseeuw & Leroy 1987): a patch in up
    to a third of the VOI hardly moves or widens them, and on noise and symmetric texture the mean does not move.
    """
    sigma = [min(rule.outlier_smoothing_mm / mm, 1.5) for mm in volume.spacing_mm]
    smooth = scipy.ndimage.gaussian_filter(np.asarray(volume.hu, dtype=np.float32), sigma)
    middle, half_length = _shortest_half(smooth[weights > 0.5])
    spread = max(1.4826 * half_length, 5.0)
    low, high = rule.absolute_limits_hu
    outside = np.abs(smooth - middle) > rule.outlier_sd * spread
    return np.asarray(outside | (smooth < low) | (smooth > high))


def _shortest_half(values: NDArray[np.float32]) -> tuple[float, float]:
    """Middle and half length of the shortest interval that holds half of the values."""
    ordered = np.sort(values.astype(np.float64))
    count = len(ordered) // 2
    lengths = ordered[count:] - ordered[: len(ordered) - count]
    start = int(np.argmin(lengths))
    return float(ordered[start] + lengths[start] / 2), float(lengths[start] / 2)


def _voi(
    crop: VertebraCrop,
    frame: VertebraFrame,
    oval_and_section: tuple[Oval, float],
    all_and_kept: tuple[NDArray[np.float32], NDArray[np.float32]],
    rule: VoiRule,
) -> Voi:
    oval, section_mm2 = oval_and_section
    weights, kept = all_and_kept
    covered = oval.area_mm2 / section_mm2
    excluded = 1.0 - float(kept.sum() / weights.sum())
    if excluded > rule.max_excluded_fraction:
        text = f"{excluded:.0%} of the VOI in {crop.level.name} is island, vein or vacuum"
        raise VoiError("VOI_EXCLUSIONS", f"{text}; expected at most {rule.max_excluded_fraction:.0%}")
    box = scipy.ndimage.find_objects((weights > 0).astype(np.uint8))[0]
    start = tuple(int(part.start) + offset for part, offset in zip(box, crop.start, strict=True))
    centre = frame.to_lps_mm(np.array([0.0, oval.forward_mm, oval.lateral_mm]))
    voi = Voi(
        level=crop.level.name,
        weights=kept[box],
        start=start,  # type: ignore[arg-type]
        centre_lps_mm=_triple(centre),
        normal_lps=_triple(frame.axis_lps),
        semi_axes_mm=(oval.semi_lateral_mm, oval.semi_forward_mm),
        depth_mm=rule.depth_mm,
        cancellous_fraction=covered,
        volume_mm3=float(kept.sum()) * crop.volume.voxel_volume_mm3,
        excluded_fraction=excluded,
        rule_version=rule.version,
        flags=_small(covered, rule),
    )
    return _with_outline(voi, crop.volume, frame)


def _small(covered: float, rule: VoiRule) -> tuple[Reason, ...]:
    """The margin leaves small vertebrae less than the usual part of their section."""
    if covered >= rule.usual_fraction:
        return ()
    text = f"the oval covers {covered:.3f} of the cancellous section; usual is at least {rule.usual_fraction}"
    return (reason("VOI_SMALL", text),)


def _with_outline(voi: Voi, volume: CtVolume, frame: VertebraFrame) -> Voi:
    middle = int(round(float(volume.to_index(np.array(voi.centre_lps_mm))[0])))
    outline = outline_lps_mm(volume, voi, frame, middle)
    return replace(voi, outlines_lps_mm=(tuple(_triple(point) for point in outline),))


def _triple(vector: NDArray[np.float64]) -> tuple[float, float, float]:
    return float(vector[0]), float(vector[1]), float(vector[2])
