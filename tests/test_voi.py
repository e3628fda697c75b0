"""The VOI on spines whose every point is known: frame, oval, margins, exclusions, sampling, raggedness, refusals."""

from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
from scipy import ndimage

from analysis.errors import VoiError
from analysis.results import Segmentation, Voi
from analysis.vertebra_frame import crop_vertebra, fit_frame
from analysis.voi import place_voi
from analysis.voi_rule import VoiRule
from tests.voi_builders import BETA, SIGMA, BuiltSpine, SpineGrid, SpineShape, build_spine, frames_of, ragged

PAIR = SpineShape(densities_mg_cm3=(("L1", 120.0), ("L2", 110.0)), tilts_deg=(6.0, -8.0))
GRID = SpineGrid(spacing_mm=(1.25, 1.0, 1.0), extent_mm=(80.0, 110.0, 90.0))


@lru_cache(maxsize=4)
def spine(shape: SpineShape = PAIR, grid: SpineGrid = GRID) -> BuiltSpine:
    return build_spine(shape, grid)


def mean_bmd(built: BuiltSpine, voi: Voi) -> float:
    box = tuple(slice(a, a + n) for a, n in zip(voi.start, voi.weights.shape, strict=True))
    hu = float((voi.weights * built.volume.hu[box]).sum() / voi.weights.sum())
    return (hu - BETA) / SIGMA


def with_maps(built: BuiltSpine, **changes: np.ndarray) -> Segmentation:
    return replace(built.segmentation, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("shape", "grid"),
    [
        (PAIR, GRID),
        (replace(PAIR, side_bend_deg=12.0), GRID),
        (PAIR, replace(GRID, flip=True)),
        (PAIR, replace(GRID, oblique_deg=12.0)),
        (PAIR, replace(GRID, spacing_mm=(3.0, 3.0, 3.0))),
        (PAIR, replace(GRID, spacing_mm=(5.0, 0.9, 0.9), extent_mm=(85.0, 110.0, 90.0))),
    ],
    ids=["lordosis", "scoliosis", "flipped grid", "oblique grid", "3-mm voxels", "5-mm slices"],
)
def test_frame_and_density_are_found_on_any_grid(shape: SpineShape, grid: SpineGrid) -> None:
    built = spine(shape, grid)
    # a tilt of 8 degrees is less than one 5-mm slice over the endplate: such masks hardly show it
    coarse = max(grid.spacing_mm) > 2.0
    tolerance_deg = {3.0: 4.0, 5.0: 8.0}.get(grid.spacing_mm[0], 2.5)
    for (name, _, centre, rotation), (_, density) in zip(frames_of(shape), shape.densities_mg_cm3, strict=True):
        frame = fit_frame(crop_vertebra(built.volume, built.segmentation, name), built.segmentation)
        turned = np.rad2deg(np.arccos(np.clip(np.diag(frame.rotation.T @ rotation), -1, 1)))
        assert turned.max() < tolerance_deg
        assert np.linalg.norm(frame.centre_lps_mm - centre) < (1.5 if coarse else 0.8)
        voi = place_voi(built.volume, built.segmentation, name)
        assert mean_bmd(built, voi) == pytest.approx(density, abs=2.0)
        assert 0.55 <= voi.cancellous_fraction <= 0.75


def test_the_oval_keeps_its_margin_to_the_cortex_in_the_true_shape() -> None:
    built, rule = spine(), VoiRule()
    for name, _, centre, rotation in frames_of(PAIR):
        voi = place_voi(built.volume, built.segmentation, name, rule)
        turn = fit_frame(crop_vertebra(built.volume, built.segmentation, name), built.segmentation).rotation
        angle = np.linspace(0, 2 * np.pi, 60)
        for end in (-4.5, 4.5):
            ring = np.stack(
                [np.full(60, end), voi.semi_axes_mm[1] * np.sin(angle), voi.semi_axes_mm[0] * np.cos(angle)], axis=1
            )
            w, v, u = ((ring @ turn.T + np.array(voi.centre_lps_mm) - centre) @ rotation).T
            inner = np.array([PAIR.half_depth_mm - PAIR.cortex_mm, PAIR.half_width_mm - PAIR.cortex_mm * 21 / 15.5])
            outline = np.stack([inner[0] * np.sin(angle), inner[1] * np.cos(angle)], axis=1)
            outline = outline[outline[:, 0] > -8]  # the vein's mouth in the rear wall is no cortex
            gaps = np.linalg.norm(np.stack([v, u], axis=1)[:, None] - outline[None], axis=2).min(axis=1)
            assert gaps.min() > rule.margin_mm - 0.5
            assert (PAIR.height_mm / 2 - PAIR.cortex_mm - np.abs(w)).min() > rule.margin_mm


def test_no_weight_lies_in_cortex_or_outside_the_body_and_weights_add_up_to_the_cylinder() -> None:
    built = spine()
    voi = place_voi(built.volume, built.segmentation, "L1")
    box = tuple(slice(a, a + n) for a, n in zip(voi.start, voi.weights.shape, strict=True))
    assert set(np.unique(built.segmentation.body[box][voi.weights > 0])) == {3}
    cylinder_mm3 = np.pi * voi.semi_axes_mm[0] * voi.semi_axes_mm[1] * voi.depth_mm
    assert voi.volume_mm3 == pytest.approx(cylinder_mm3 * (1 - voi.excluded_fraction), rel=0.01)
    assert ((voi.weights > 0.02) & (voi.weights < 0.98)).any()  # partial-volume weights at the edge


def test_the_covered_fraction_is_that_of_the_true_section() -> None:
    voi = place_voi(spine().volume, spine().segmentation, "L2")
    shrink = 1 - PAIR.cortex_mm / PAIR.half_depth_mm
    section_mm2 = np.pi * PAIR.half_depth_mm * PAIR.half_width_mm * shrink**2
    covered = np.pi * voi.semi_axes_mm[0] * voi.semi_axes_mm[1] / section_mm2
    assert voi.cancellous_fraction == pytest.approx(covered, rel=0.06)


def test_the_oval_lies_forward_of_the_middle_away_from_the_vein() -> None:
    for name, _, centre, rotation in frames_of(PAIR):
        voi = place_voi(spine().volume, spine().segmentation, name)
        _, forward, lateral = (np.array(voi.centre_lps_mm) - centre) @ rotation
        assert 0.5 < forward < 5.0 and abs(lateral) < 1.0


def test_sub_voxel_shifts_do_not_make_the_result_jump() -> None:
    shape = replace(PAIR, texture_sd_mg_cm3=0.0)
    values = [
        mean_bmd(built, place_voi(built.volume, built.segmentation, "L1"))
        for built in (
            build_spine(replace(shape, shift_mm=shift), GRID) for shift in ((0.0, 0.0, 0.0), (0.3, -0.4, 0.5))
        )
    ]
    assert abs(values[0] - values[1]) < 0.6


def test_islands_and_vein_are_left_out() -> None:
    built = spine(replace(PAIR, island_radius_mm=3.0, noise_sd_hu=10.0))
    voi = place_voi(built.volume, built.segmentation, "L1")
    assert voi.excluded_fraction > 0.02
    assert mean_bmd(built, voi) == pytest.approx(120.0, abs=3.0)
    everything = place_voi(
        built.volume, built.segmentation, "L1", VoiRule(outlier_sd=1e3, absolute_limits_hu=(-2e3, 4e3))
    )
    assert mean_bmd(built, everything) > 130.0


def test_a_patch_of_other_bone_in_a_fifth_of_the_voi_is_left_out_and_does_not_hide_itself() -> None:
    """A dark ball of 6 mm would lower the mean by over 10 mg/cm3; robust limits must not widen with it."""
    built = spine(replace(PAIR, texture_sd_mg_cm3=10.0, noise_sd_hu=8.0))
    clean = mean_bmd(built, place_voi(built.volume, built.segmentation, "L1"))
    centre = next(level.centroid_lps_mm for level in built.segmentation.levels if level.name == "L1")
    places = built.volume.to_lps_mm(np.moveaxis(np.indices(built.volume.hu.shape), 0, -1).astype(float))
    inside = np.linalg.norm(places - np.array(centre) - [0.0, -3.0, 0.0], axis=-1) < 6.0
    patched = replace(built, volume=replace(built.volume, hu=np.where(inside, built.volume.hu - 90, built.volume.hu)))
    voi = place_voi(patched.volume, built.segmentation, "L1")
    assert 0.08 < voi.excluded_fraction < 0.25
    assert mean_bmd(patched, voi) == pytest.approx(clean, abs=3.0)


def test_leaving_out_outliers_does_not_bias_the_mean_of_pure_texture_and_noise() -> None:
    built = spine(replace(PAIR, vein=False, texture_sd_mg_cm3=25.0, noise_sd_hu=15.0))
    for name in ("L1", "L2"):
        kept = place_voi(built.volume, built.segmentation, name)
        everything = place_voi(built.volume, built.segmentation, name, VoiRule(outlier_sd=1e3))
        assert kept.excluded_fraction < 0.01
        assert abs(mean_bmd(built, kept) - mean_bmd(built, everything)) * SIGMA < 1.0


@pytest.mark.parametrize("seed", [1, 2])
def test_ragged_masks_move_the_result_by_less_than_the_budget(seed: int) -> None:
    built = spine(replace(PAIR, texture_sd_mg_cm3=20.0, noise_sd_hu=12.0))
    wandering = ragged(built.segmentation, built.volume, seed)
    for name in ("L1", "L2"):
        smooth = place_voi(built.volume, built.segmentation, name)
        rough = place_voi(built.volume, wandering, name)
        assert np.linalg.norm(np.subtract(smooth.centre_lps_mm, rough.centre_lps_mm)) < 2.5
        assert mean_bmd(built, rough) == pytest.approx(mean_bmd(built, smooth), abs=1.5)


def test_without_a_cancellous_class_the_section_comes_from_the_body() -> None:
    built = spine()
    only_body = np.where(built.segmentation.body >= 2, 2, built.segmentation.body).astype(np.uint8)
    voi = place_voi(built.volume, with_maps(built, body=only_body), "L1")
    assert mean_bmd(built, voi) == pytest.approx(120.0, abs=2.0)
    assert 0.55 <= voi.cancellous_fraction <= 0.75


def test_the_outline_is_closed_and_lies_in_the_middle_source_slice() -> None:
    built = spine(PAIR, replace(GRID, oblique_deg=12.0))
    voi = place_voi(built.volume, built.segmentation, "L2")
    outline = np.array(voi.outlines_lps_mm[0])
    index = built.volume.to_index(outline)
    assert np.ptp(index[:, 0]) < 1e-9 and index[0, 0] == pytest.approx(round(index[0, 0]), abs=1e-9)
    assert abs(index[0, 0] - built.volume.to_index(np.array(voi.centre_lps_mm))[0]) <= 0.5
    assert np.array_equal(outline[0], outline[-1])
    used = voi.weights[int(round(index[0, 0])) - voi.start[0]] > 0.5
    rows, columns = np.nonzero(used)
    assert index[:, 1].min() - 1 < rows.min() + voi.start[1] and rows.max() + voi.start[1] < index[:, 1].max() + 1
    assert index[:, 2].min() - 1 < columns.min() + voi.start[2] and columns.max() + voi.start[2] < index[:, 2].max() + 1


def test_a_level_that_is_not_there_is_named() -> None:
    with pytest.raises(VoiError, match="L4 was not found; the segmentation holds L1, L2") as refusal:
        place_voi(spine().volume, spine().segmentation, "L4")
    assert refusal.value.code == "VERTEBRA_MISSING"


def test_a_flat_vertebra_has_no_room_for_the_depth() -> None:
    built = spine(replace(PAIR, crush=0.4))
    with pytest.raises(VoiError) as refusal:
        place_voi(built.volume, built.segmentation, "L1")
    assert refusal.value.code == "VOI_MARGIN"


def test_an_oval_that_covers_too_little_is_refused() -> None:
    with pytest.raises(VoiError) as refusal:
        place_voi(spine().volume, spine().segmentation, "L1", VoiRule(margin_mm=4.5))
    assert refusal.value.code in {"VOI_COVERAGE", "VOI_MARGIN"}


def test_a_small_section_is_measured_and_says_so() -> None:
    """The margin leaves an oval in a small vertebra a smaller part of it; the density is that of its middle."""
    built = spine(replace(PAIR, half_width_mm=13.65, half_depth_mm=10.1, height_mm=22.3))
    voi = place_voi(built.volume, built.segmentation, "L1", VoiRule(margin_mm=2.3))
    assert 0.50 <= voi.cancellous_fraction < 0.55
    assert [flag.code for flag in voi.flags] == ["VOI_SMALL"]
    assert mean_bmd(built, voi) == pytest.approx(120.0, abs=2.0)
    with pytest.raises(VoiError, match=r"covers 0\.5\d\d of .*; expected at least 0\.55") as refusal:
        place_voi(built.volume, built.segmentation, "L1", VoiRule(margin_mm=2.3, min_fraction=0.55))
    assert refusal.value.code == "VOI_COVERAGE"


def test_a_voi_that_is_mostly_something_else_is_refused() -> None:
    built = spine(replace(PAIR, inside_hu=900.0))
    with pytest.raises(VoiError) as refusal:
        place_voi(built.volume, built.segmentation, "L1")
    assert refusal.value.code == "VOI_EXCLUSIONS"


def test_a_mask_without_endplates_has_no_frame() -> None:
    """A body of the right volume but as thin as a pencil cannot be given endplates."""
    built = spine()
    thin = ndimage.binary_erosion(built.segmentation.body >= 2, np.ones((1, 3, 3)), iterations=8)
    body = np.where(thin, 3, np.where(built.segmentation.body == 1, 1, 0)).astype(np.uint8)
    with pytest.raises(VoiError) as refusal:
        place_voi(built.volume, with_maps(built, body=body), "L1")
    assert refusal.value.code in {"VOI_FRAME", "VERTEBRA_MISSING"}
