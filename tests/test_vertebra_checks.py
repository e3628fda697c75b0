"""Which vertebrae may not be measured: each finding is painted into L1 of a spine of three and must be named."""

from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest

from analysis.refusals import REASONS
from analysis.vertebra_checks import VertebraLimits, check_vertebra
from tests.voi_builders import BuiltSpine, SpineGrid, SpineShape, build_spine

TRIPLE = SpineShape(
    densities_mg_cm3=(("T12", 130.0), ("L1", 120.0), ("L2", 110.0)),
    tilts_deg=(6.0, 1.0, -4.0),
    texture_sd_mg_cm3=20.0,
    noise_sd_hu=12.0,
)
GRID = SpineGrid(spacing_mm=(1.5, 1.2, 1.2), extent_mm=(118.0, 110.0, 90.0))


@lru_cache(maxsize=2)
def spine(shape: SpineShape = TRIPLE) -> BuiltSpine:
    return build_spine(shape, GRID)


def codes(built: BuiltSpine, level: str = "L1", limits: VertebraLimits | None = None) -> set[str]:
    return {reason.code for reason in check_vertebra(built.volume, built.segmentation, level, limits)}


@pytest.mark.parametrize("level", ["T12", "L1", "L2"])
def test_a_healthy_vertebra_has_no_finding(level: str) -> None:
    assert codes(spine(), level) == set()


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"wedge": 0.65}, "FRACTURE"),
        ({"crush": 0.65}, "FRACTURE"),
        ({"inside_hu": 1500.0}, "CEMENT"),
        ({"inside_hu": 2800.0}, "METAL"),
        ({"inside_hu": 480.0}, "SCLEROSIS"),
        ({"inside_hu": -60.0}, "LESION"),
        ({"inside_hu": -400.0}, "LESION"),
        ({"densities_mg_cm3": (("T12", 130.0), ("L1", 320.0), ("L2", 110.0))}, "SCLEROSIS"),
    ],
    ids=["wedge", "crush", "cement", "metal", "bright half", "lytic", "gas", "ivory"],
)
def test_each_finding_is_named_with_a_code_of_the_table(changes: dict[str, object], code: str) -> None:
    found = codes(build_spine(replace(TRIPLE, **changes), GRID))  # type: ignore[arg-type]
    assert code in found and found <= set(REASONS)


def test_a_finding_in_one_vertebra_does_not_reject_its_neighbours() -> None:
    built = build_spine(replace(TRIPLE, inside_hu=1500.0), GRID)
    assert codes(built, "L2") == set()


def test_a_vertebra_cut_by_the_last_slice_is_not_measured() -> None:
    built = spine()
    keep = slice(0, built.volume.hu.shape[0] - 14)
    volume = replace(built.volume, hu=built.volume.hu[keep])
    maps = {"labels": built.segmentation.labels[keep], "body": built.segmentation.body[keep]}
    cut = BuiltSpine(volume, replace(built.segmentation, **maps), built.density_mg_cm3[keep])  # type: ignore[arg-type]
    assert codes(cut, "T12") == {"VERTEBRA_CUT"}
    assert codes(cut, "L2") == set()


def test_incomplete_and_uncertain_levels_are_believed() -> None:
    built = spine()

    def with_level(**changes: object) -> BuiltSpine:
        levels = tuple(
            replace(level, **changes) if level.name == "L1" else level  # type: ignore[arg-type]
            for level in built.segmentation.levels
        )
        return replace(built, segmentation=replace(built.segmentation, levels=levels))

    assert codes(with_level(complete=False)) == {"VERTEBRA_CUT"}
    assert codes(with_level(confidence=0.3)) == {"LEVEL_UNCERTAIN"}


def test_a_missing_vertebra_is_a_reason_and_no_crash() -> None:
    assert codes(spine(), "L5") == {"VERTEBRA_MISSING"}
    built = spine()
    none = replace(built.segmentation, body=np.zeros_like(built.segmentation.body))
    assert codes(replace(built, segmentation=none)) == {"VERTEBRA_MISSING"}
