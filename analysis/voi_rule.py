"""The rule by which the trabecular VOI is placed, with its version."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class VoiRule:
    """The rule by which the VOI is placed. Any change of a number needs a new version, it changes the method."""

    version: str = "oval-3"
    depth_mm: float = 9.0
    margin_mm: float = 2.0  # from the oval to the cortex and to the endplates
    cortex_margin_mm: float = 2.0  # taken off the body where the cancellous class is missing
    target_fraction: float = 2 / 3
    min_fraction: float = 0.50  # covered less: refused
    usual_fraction: float = 0.55  # covered less: measured and flagged
    max_fraction: float = 0.75
    vein_shift_fraction: float = 0.10  # of the section's front-back diameter, forward of its middle
    shifted_fraction: float = 0.62  # the oval must still cover this much there
    outlier_sd: float = 4.0  # robust standard deviations of the smoothed image
    outlier_smoothing_mm: float = 1.2
    absolute_limits_hu: tuple[float, float] = (-200.0, 600.0)
    max_excluded_fraction: float = 0.25
