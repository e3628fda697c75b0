"""The report's picture: its size, what is drawn where, and what it never says."""

import io
from dataclasses import replace
from functools import lru_cache

import numpy as np
from matplotlib.image import imread

from analysis.bmd import BmdLimits, SummaryContext, measure_vertebra, summarise
from analysis.pictures import headline, report_picture, sagittal_view
from analysis.results import BmdSummary, Material, VertebraBmd, Voi
from analysis.voi import place_voi
from tests.voi_builders import BuiltSpine, LineSpec, SpineGrid, SpineShape, build_spine, chosen_calibration

PAIR = SpineShape(densities_mg_cm3=(("L1", 120.0), ("L2", 110.0)), tilts_deg=(6.0, -8.0))
GRID = SpineGrid(spacing_mm=(2.0, 1.4, 1.4), extent_mm=(80.0, 112.0, 92.0))


@lru_cache(maxsize=1)
def measured() -> tuple[BuiltSpine, tuple[Voi, ...], tuple[VertebraBmd, ...], BmdSummary]:
    built, chosen = build_spine(PAIR, GRID), chosen_calibration()
    vois = tuple(place_voi(built.volume, built.segmentation, level) for level in ("L1", "L2"))
    vertebrae = tuple(measure_vertebra(built.volume, voi, chosen) for voi in vois)
    return built, vois, vertebrae, summarise(vertebrae, SummaryContext(chosen))


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(imread(io.BytesIO(png))[..., :3])


def voi_pixels(image: np.ndarray) -> int:
    """Pixels of the VOIs' colour."""
    return int((np.abs(image - np.array([1.0, 0.71, 0.27])).max(axis=2) < 0.06).sum())


def test_the_picture_is_a_png_of_1200_by_900_with_the_vois_drawn() -> None:
    built, vois, vertebrae, summary = measured()
    png = report_picture(built.volume, built.segmentation, vois, vertebrae, summary)
    image = pixels(png)
    assert png.startswith(b"\x89PNG") and image.shape[:2] == (900, 1200)
    assert voi_pixels(image[:, :470]) > 200, "VOI outlines in the side view"
    assert voi_pixels(image[:480, 480:]) > 400, "ovals in the axial slices"


def test_one_vertebra_and_a_scale_without_classes_can_be_drawn() -> None:
    built, vois, _, _ = measured()
    chosen = chosen_calibration(LineSpec(material=Material.HA))
    single = measure_vertebra(built.volume, vois[0], chosen)
    summary = summarise([single], SummaryContext(chosen, limits=BmdLimits(minimum_vertebrae=1)))
    image = pixels(report_picture(built.volume, built.segmentation, vois[:1], [single], summary))
    band = np.array([0xD9, 0x53, 0x4F]) / 255
    assert (np.abs(image - band).max(axis=2) < 0.03).sum() == 0, "no class bands on another scale"
    assert headline(summary).startswith("L1 only")


def test_the_headline_names_the_levels_that_were_measured() -> None:
    _, _, _, summary = measured()
    assert headline(summary).startswith("Mean of L1 and L2: 1")
    assert headline(replace(summary, levels=("L2", "L3"))).startswith("Mean of L2 and L3")


def test_the_side_view_follows_the_curve_of_the_spine() -> None:
    """In a scoliotic spine the middle of every body shows bone, not the tissue beside it."""
    built = build_spine(replace(PAIR, side_bend_deg=20.0), GRID)
    view = sagittal_view(built.volume, built.segmentation)
    for level in built.segmentation.levels:
        _, y, z = level.centroid_lps_mm
        row, column = np.argmin(np.abs(view.z_mm - z)), np.argmin(np.abs(view.y_mm - y))
        assert view.image[row, column] > 90.0
