"""The whole segmentation with the committed networks: real series, degraded series, series without a spine."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import analysis
from analysis.errors import ModelError, NoVertebraError
from analysis.results import Segmentation
from analysis.segmentation import (
    Networks,
    SegmentationLimits,
    agreed_contact,
    choose_device,
    level_flags,
    segment_vertebrae,
)
from analysis.segmentation_report import segmentation_report
from analysis.spine_chain import name_levels
from analysis.vbnet import LoadedNetwork, VBNet, coarse_config, fine_config, load_network
from analysis.vertebra_labels import LABELS, SACRUM_LABEL
from analysis.volume import CtVolume
from tests import segmentation_builders as build
from tests.data import needs_data
from tests.spine_builders import chain_of, levels_between
from tests.studies.segmentation_cases import load_case
from tests.studies.segmentation_metrics import match_level

MODELS = Path(analysis.__file__).parent / "models"
LIMITS = SegmentationLimits(device="cpu")


@pytest.fixture(scope="module")
def networks() -> Networks:
    return Networks(load_network(MODELS / "coarse.safetensors"), load_network(MODELS / "fine.safetensors"))


@pytest.fixture(scope="module")
def abdomen(networks: Networks) -> Segmentation:
    """PET-CT of chest and abdomen at 2 x 2 x 4.25 mm, made smaller in the plane to be fast."""
    return segment_vertebrae(smaller(load_case("acrin-flt-001").volume), networks, LIMITS)


def smaller(volume: CtVolume) -> CtVolume:
    affine = volume.affine.copy()
    affine[:3, 1:3] *= 2
    affine[:3, 3] += (volume.affine[:3, 1] + volume.affine[:3, 2]) / 2
    n = volume.hu.shape
    hu = volume.hu.reshape(n[0], n[1] // 2, 2, n[2] // 2, 2).mean(axis=(2, 4))
    return CtVolume(hu.astype(np.int16), affine)


def untrained(config: object) -> LoadedNetwork:
    torch.manual_seed(0)
    return LoadedNetwork(config, VBNet(config).eval(), "0" * 64)  # type: ignore[arg-type]


@needs_data
def test_l1_and_l2_of_a_real_scan_are_named_and_lie_where_a_reader_marked_them(abdomen: Segmentation) -> None:
    for vertebra in load_case("acrin-flt-001").annotation.vertebrae:
        if vertebra.level in ("L1", "L2"):
            match = match_level(vertebra.level, vertebra.centroid_lps_mm, abdomen.levels, LIMITS.min_level_confidence)
            assert match.verdict == "right" and match.error_mm < 5, match


@needs_data
def test_maps_levels_and_bodies_agree_with_one_another(abdomen: Segmentation) -> None:
    assert abdomen.labels.shape == abdomen.body.shape and abdomen.labels.dtype == abdomen.body.dtype == np.uint8
    found = set(np.unique(abdomen.labels)) - {0, SACRUM_LABEL}
    assert found == {level.label for level in abdomen.levels}
    assert ((abdomen.body > 0) == (abdomen.labels > 0) & (abdomen.labels != SACRUM_LABEL)).all()
    heights = [level.centroid_lps_mm[2] for level in abdomen.levels]
    assert heights == sorted(heights, reverse=True)


@needs_data
def test_bodies_have_a_cortex_around_their_cancellous_bone(abdomen: Segmentation) -> None:
    """In the plane, cancellous bone of a body may hardly touch what is not bone of the same vertebra.

    Across slices of 4.25 mm it may: the endplate of 2 mm is thinner than the slice.
    """
    inner = abdomen.body == 3
    outside = abdomen.body == 0
    touching = sum(int((inner & np.roll(outside, shift, axis)).sum()) for axis in (1, 2) for shift in (-1, 1))
    assert inner.sum() > 5000 and touching < 0.05 * inner.sum()


@needs_data
def test_orientation_and_sign_of_the_axes_do_not_change_the_answer(networks: Networks, abdomen: Segmentation) -> None:
    """The same series stored head first to feet and left to right must give the same levels at the same places."""
    volume = smaller(load_case("acrin-flt-001").volume)
    affine = volume.affine.copy()
    affine[:3, 3] += volume.affine[:3, 0] * (volume.hu.shape[0] - 1) + volume.affine[:3, 2] * (volume.hu.shape[2] - 1)
    affine[:3, 0] *= -1
    affine[:3, 2] *= -1
    turned = segment_vertebrae(CtVolume(volume.hu[::-1, :, ::-1], affine), networks, LIMITS)
    assert [v.name for v in turned.levels] == [v.name for v in abdomen.levels]
    np.testing.assert_array_equal(turned.labels[::-1, :, ::-1], abdomen.labels)


@needs_data
def test_the_answer_is_the_same_twice(networks: Networks) -> None:
    volume = load_case("l3-subregions").volume
    first, second = (segment_vertebrae(volume, networks, LIMITS) for _ in range(2))
    np.testing.assert_array_equal(first.labels, second.labels)
    assert first.levels == second.levels


@needs_data
def test_a_cut_out_without_ribs_or_sacrum_is_outlined_but_its_level_is_uncertain(networks: Networks) -> None:
    result = segment_vertebrae(load_case("l3-subregions").volume, networks, LIMITS)
    assert "LEVEL_UNCERTAIN" in [flag.code for flag in result.flags]
    assert max(level.confidence for level in result.levels) < LIMITS.min_level_confidence


DEGRADED = {
    "noise of SD 60 HU": lambda volume, marks: build.with_noise(volume, 60.0),
    "lower half of L1 cut off": lambda volume, marks: build.slices_between(volume, marks["L1"][2], 1e4),
    "metal in L2": lambda volume, marks: build.with_pedicle_screws(volume, marks["L2"]),
    "narrow field of view": lambda volume, marks: build.around(volume, marks["L2"], 50.0),
}


@needs_data
@pytest.mark.parametrize("name", DEGRADED)
def test_a_degraded_series_is_named_right_or_not_with_confidence(name: str, networks: Networks) -> None:
    case = load_case("crlm-1004")
    marks = {vertebra.level: vertebra.centroid_lps_mm for vertebra in case.annotation.vertebrae}
    try:
        result = segment_vertebrae(DEGRADED[name](smaller(case.volume), marks), networks, LIMITS)
    except NoVertebraError:
        return
    limit = LIMITS.min_level_confidence
    verdicts = [match_level(level, mark, result.levels, limit).verdict for level, mark in marks.items()]
    assert "wrong" not in verdicts


@needs_data
def test_a_vertebra_cut_by_the_edge_is_not_called_complete(networks: Networks) -> None:
    case = load_case("crlm-1004")
    marks = {vertebra.level: vertebra.centroid_lps_mm for vertebra in case.annotation.vertebrae}
    result = segment_vertebrae(build.slices_between(smaller(case.volume), marks["L1"][2], 1e4), networks, LIMITS)
    lowest = result.levels[-1]
    assert not lowest.complete


@pytest.mark.parametrize("make", [build.water_bath, build.rod_phantom, build.head, build.noise_only, build.air_only])
def test_what_is_no_spine_is_called_no_spine_or_has_no_sure_level(make: object, networks: Networks) -> None:
    try:
        result = segment_vertebrae(make(), networks, LIMITS)  # type: ignore[operator]
    except NoVertebraError as error:
        assert error.code == "NO_SPINE"
        assert "check that" in error.text or "plausible" in error.text
    else:
        assert max(level.confidence for level in result.levels) < LIMITS.min_level_confidence


# --- without weights ------------------------------------------------------------------------------------------------


def test_networks_that_are_swapped_are_refused() -> None:
    coarse, fine = untrained(coarse_config()), untrained(fine_config())
    with pytest.raises(ModelError, match="expected .'coarse', 'fine'.: check the configured paths"):
        segment_vertebrae(build.air_only(), Networks(fine, coarse), LIMITS)


def test_a_card_that_is_not_there_is_an_error_and_not_a_silent_fall_back() -> None:
    if torch.cuda.is_available():
        assert choose_device(SegmentationLimits(device="cuda"))[0].type == "cuda"
    else:
        with pytest.raises(ModelError, match="no CUDA device"):
            choose_device(SegmentationLimits(device="cuda"))
    assert choose_device(SegmentationLimits(device="cpu", precision="float32"))[1] == torch.float32


def test_a_level_below_the_limit_is_flagged_with_its_probability_and_the_landmarks() -> None:
    from analysis.results import VertebraLevel

    evidence = chain_of(levels_between("L1", "L3"), ribs=False)
    chain = name_levels(evidence)
    levels = tuple(
        VertebraLevel(name, LABELS[name], confidence, (0.0, 0.0, float(-i)), True)
        for i, (name, confidence) in enumerate(zip(chain.names, chain.confidences, strict=True))
    )
    flags = level_flags(levels, chain, LIMITS)
    assert [flag.code for flag in flags] == ["LEVEL_UNCERTAIN"]
    assert "0.90" in flags[0].text and "landmarks in view: none" in flags[0].text
    assert "slices above 6 mm" not in flags[0].text
    thick = level_flags(levels, replace(chain, discs_resolved=False), LIMITS)
    assert "slices above 6 mm do not tell neighbours apart" in thick[0].text


@needs_data
def test_the_report_holds_plain_values_for_every_level(abdomen: Segmentation) -> None:
    import json

    report = json.loads(json.dumps(segmentation_report(abdomen)))
    assert [level["name"] for level in report["levels"]] == [level.name for level in abdomen.levels]
    assert set(report["timings_s"]) >= {"resampling", "coarse network", "fine network", "label maps"}


def test_half_a_transverse_process_at_the_edge_of_the_series_is_no_rib_unless_both_networks_see_one() -> None:
    assert agreed_contact(0.98, 0.02, cut=False) == 0.98  # a 12th rib that the coarse network misses
    assert agreed_contact(0.98, 0.02, cut=True) is None
    assert agreed_contact(0.98, 0.90, cut=True) == 0.90
    assert agreed_contact(None, 0.90, cut=False) is None
