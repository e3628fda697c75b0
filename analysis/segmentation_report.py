"""A segmentation in plain values, for `segment.json`: levels, confidences, centroids (LPS mm), timings, models."""

from typing import Any

from analysis.results import ModelUsed, Segmentation
from analysis.version import SOFTWARE_VERSION


def segmentation_report(segmentation: Segmentation, models: tuple[ModelUsed, ...] = ()) -> dict[str, Any]:
    """Everything but the voxels; the keys are part of the file format and change only with the version."""
    return {
        "software_version": SOFTWARE_VERSION,
        "numbering": "VerSe: C7 = 7, T1 = 8 ... T12 = 19, L1 = 20 ... L5 = 24, L6 = 25, sacrum = 26, T13 = 28",
        "body_map": "1 posterior elements, 2 cortex of the body, 3 cancellous bone of the body",
        "levels": [
            {
                "name": level.name,
                "label": level.label,
                "confidence": round(level.confidence, 4),
                "centroid_lps_mm": [round(c, 2) for c in level.centroid_lps_mm],
                "complete": level.complete,
            }
            for level in segmentation.levels
        ],
        "level_anchors": list(segmentation.level_anchors),
        "flags": [{"code": flag.code, "text": flag.text} for flag in segmentation.flags],
        "timings_s": {name: round(seconds, 3) for name, seconds in segmentation.timings_s},
        "models": [{"name": m.name, "version": m.version, "sha256": m.sha256} for m in models],
    }
