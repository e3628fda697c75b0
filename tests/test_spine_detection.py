"""From centroid maps to the column of vertebrae."""

import numpy as np
import pytest

from analysis.spine_detection import DetectionLimits, find_peaks, pooled_levels, sacrum_below, spine_column
from tests.spine_builders import coarse_maps

LIMITS = DetectionLimits()
SHAPE = (64, 40, 48)


def straight_spine(n: int = 6, spacing_mm: float = 34.0) -> list[tuple[float, float, float]]:
    return [(230.0 - i * spacing_mm, 100.0 + 3.0 * i, 96.0) for i in range(n)]


def heights_mm(column: list) -> list[float]:  # type: ignore[type-arg]
    return [float(peak.index[0]) * 4.0 for peak in column]


def test_every_body_is_found_within_a_millimetre_and_a_half_from_head_to_feet() -> None:
    centroids = straight_spine()
    column = spine_column(find_peaks(coarse_maps(centroids, SHAPE), LIMITS), 4.0, LIMITS)
    found = np.array([peak.index * 4.0 for peak in column])
    assert len(found) == len(centroids)
    assert np.linalg.norm(found - np.array(centroids), axis=1).max() < 1.5


def test_a_false_peak_in_a_hip_is_left_out_of_the_column() -> None:
    centroids = straight_spine()
    maps = coarse_maps([*centroids, (60.0, 90.0, 20.0)], SHAPE)
    column = spine_column(find_peaks(maps, LIMITS), 4.0, LIMITS)
    assert len(column) == len(centroids)
    assert all(abs(peak.index[2] * 4.0 - 96.0) < 4 for peak in column)


def test_a_weak_peak_between_strong_ones_is_kept() -> None:
    centroids = straight_spine()
    maps = coarse_maps(centroids, SHAPE, heights=[0.9, 0.9, 0.2, 0.9, 0.9, 0.9])
    assert len(spine_column(find_peaks(maps, LIMITS), 4.0, LIMITS)) == len(centroids)


def test_a_missing_vertebra_leaves_one_column_with_a_gap() -> None:
    centroids = straight_spine()
    column = spine_column(find_peaks(coarse_maps([*centroids[:2], *centroids[3:]], SHAPE), LIMITS), 4.0, LIMITS)
    assert len(column) == 5
    assert max(-np.diff(heights_mm(column))) == pytest.approx(68, abs=3)


@pytest.mark.parametrize("heights", [[0.15, 0.15, 0.15], []])
def test_faint_or_absent_peaks_are_no_spine(heights: list[float]) -> None:
    maps = coarse_maps(straight_spine(len(heights)), SHAPE, heights=heights)
    assert spine_column(find_peaks(maps, LIMITS), 4.0, LIMITS) == []


def test_a_peak_in_the_sacrum_and_a_faint_one_below_the_last_vertebra_are_left_out() -> None:
    centroids = straight_spine()
    below = (centroids[-1][0] - 33.0, centroids[-1][1], 96.0)
    faint = coarse_maps([*centroids, below], SHAPE, heights=[0.9] * 6 + [0.2])
    assert len(spine_column(find_peaks(faint, LIMITS), 4.0, LIMITS)) == len(centroids)
    sacral = coarse_maps([*centroids, below], SHAPE)
    sacral.tissue[1, :12], sacral.tissue[3, :12] = 0.4 * sacral.tissue[1, :12], 0.6 * sacral.tissue[1, :12]
    assert len(spine_column(find_peaks(sacral, LIMITS), 4.0, LIMITS)) == len(centroids)


def test_a_weak_peak_at_the_edge_of_a_body_is_no_vertebra_of_its_own() -> None:
    centroids = straight_spine()
    beside = (centroids[3][0] + 15.0, centroids[3][1], 108.0)
    maps = coarse_maps([*centroids, beside], SHAPE, heights=[0.9] * 6 + [0.5])
    assert len(spine_column(find_peaks(maps, LIMITS), 4.0, LIMITS)) == len(centroids)


def test_heat_outside_vertebral_bodies_does_not_count() -> None:
    maps = coarse_maps(straight_spine(), SHAPE)
    maps.tissue[1] = 0.0
    assert find_peaks(maps, LIMITS) == []


def test_the_sacrum_is_seen_below_the_last_vertebra_or_not_or_cannot_be_judged() -> None:
    maps = coarse_maps(straight_spine(), SHAPE)
    last = spine_column(find_peaks(maps, LIMITS), 4.0, LIMITS)[-1]
    down = np.array([-1.0, 0.0, 0.0])
    assert sacrum_below(maps, last, down) < 0.05
    maps.tissue[3, 2:9, 26:38, 16:32] = 1.0
    assert sacrum_below(maps, last, down) > 0.95
    low = type(last)(np.array([3.0, 25.0, 24.0]), 1.0, 1.0, 0.0)
    assert sacrum_below(maps, low, down) is None


def test_levels_are_pooled_over_the_body_only() -> None:
    maps = coarse_maps(straight_spine(), SHAPE)
    peak = find_peaks(maps, LIMITS)[0]
    maps.level[:] = 0.0
    maps.level[13] = maps.tissue[1]
    maps.level[5] = 1 - maps.tissue[1]
    pooled = pooled_levels(maps, peak)
    assert pooled[13] > 0.98 and pooled.sum() == pytest.approx(1.0)
