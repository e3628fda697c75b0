"""Water-equivalent diameter of painted bodies, and what it does to the line."""

import numpy as np
import pytest

from analysis.body_size import SizeRule, correct_for_size, measure_body_size
from analysis.volume import CtVolume, axial_affine
from tests.voi_builders import LineSpec, chosen_calibration, segmentation_from_maps

PIXEL_MM = 2.0


def painted_body(
    half_axes_mm: tuple[float, float], hu: float = 0.0, *, table: bool = False, size: int = 260
) -> tuple[CtVolume, np.ndarray]:
    """An oval of one CT number in air, optionally on a table; slices of 3 mm."""
    rows, columns = (np.mgrid[:size, :size] - (size - 1) / 2) * PIXEL_MM
    image = np.where((columns / half_axes_mm[0]) ** 2 + (rows / half_axes_mm[1]) ** 2 <= 1, hu, -1000.0)
    if table:
        image[(rows > half_axes_mm[1] + 1) & (rows < half_axes_mm[1] + 6) & (np.abs(columns) < 220)] = 150.0
    stack = np.repeat(image[None], 12, axis=0).astype(np.float32)
    labels = np.zeros(stack.shape, dtype=np.uint8)
    middle = size // 2
    labels[3:9, middle - 8 : middle + 8, middle - 10 : middle + 10] = 20
    return CtVolume(stack, axial_affine((3.0, PIXEL_MM, PIXEL_MM), (-260.0, -260.0, 0.0))), labels


def diameter_mm(volume: CtVolume, labels: np.ndarray) -> float:
    segmentation = segmentation_from_maps(volume, labels, np.where(labels > 0, 3, 0).astype(np.uint8))
    return measure_body_size(volume, segmentation, ("L1", "L2")).water_equivalent_diameter_mm


@pytest.mark.parametrize(("axes", "hu"), [((150.0, 150.0), 0.0), ((190.0, 140.0), 0.0), ((160.0, 120.0), -60.0)])
def test_the_diameter_is_that_of_water_with_the_same_attenuation(axes: tuple[float, float], hu: float) -> None:
    true_mm = 2 * np.sqrt((1 + hu / 1000) * axes[0] * axes[1])
    assert diameter_mm(*painted_body(axes, hu)) == pytest.approx(true_mm, rel=0.02)


def test_the_table_is_not_part_of_the_body() -> None:
    assert diameter_mm(*painted_body((170.0, 120.0), table=True)) == pytest.approx(
        diameter_mm(*painted_body((170.0, 120.0))), rel=0.01
    )


def test_a_body_cut_by_the_field_of_view_is_seen() -> None:
    volume, labels = painted_body((160.0, 120.0))
    segmentation = segmentation_from_maps(volume, labels, np.where(labels > 0, 3, 0).astype(np.uint8))
    whole = measure_body_size(volume, segmentation, ("L1",))
    assert whole.truncated_fraction == 0.0 and not whole.truncated_near_spine
    cut = CtVolume(volume.hu[:, 80:180, 110:150], volume.affine)
    part = segmentation_from_maps(
        cut, labels[:, 80:180, 110:150], np.where(labels[:, 80:180, 110:150] > 0, 3, 0).astype(np.uint8)
    )
    found = measure_body_size(cut, part, ("L1",))
    assert found.truncated_fraction > 0.2 and found.truncated_near_spine


def test_with_one_size_the_line_stays_and_the_difference_is_uncertainty() -> None:
    """Rods inside a body of the patient's size differ by nothing; farther sizes cost more."""
    chosen, inside = chosen_calibration(LineSpec(diameter_mm=300.0)), SizeRule(rod_path_share=1.0)
    same, terms, flags = correct_for_size(chosen, 300.0, inside)
    assert same is chosen and flags == ()
    assert terms[0].name == "body size" and terms[0].u_mg_cm3 == pytest.approx(2.5)
    farther = [correct_for_size(chosen, mm, inside)[1][0].u_mg_cm3 for mm in (320.0, 360.0, 400.0)]
    assert farther == sorted(farther) and farther[0] > 2.5


def test_rods_below_the_body_see_a_shorter_path_and_the_stated_uncertainty_covers_what_that_does() -> None:
    """Mean chord through the edge of a round body is 2/pi of its diameter: sigma^-0.14 reads up to 6 % low there."""
    angles = np.linspace(-np.pi / 2, np.pi / 2, 10001)
    assert SizeRule().rod_path_share == pytest.approx(np.cos(angles).mean(), abs=0.01)
    chosen = chosen_calibration(LineSpec(diameter_mm=300.0))
    for patient_mm in (250.0, 300.0, 400.0):
        worst = 100.0 * (1.0 - (patient_mm / (0.64 * 300.0)) ** -0.14)
        assert worst < 2.0 * correct_for_size(chosen, patient_mm)[1][0].u_mg_cm3


def test_two_sizes_show_how_sigma_follows_the_path_so_that_the_position_can_be_corrected() -> None:
    """Rods see 0.64 of D_w: sigma measured at 25 and 36 cm gives that of a spine in a 30-cm body, if a site says so."""
    sigma = {mm: 1.4 * (0.64 * mm / 300.0) ** -0.14 for mm in (250.0, 360.0)}
    chosen = chosen_calibration(LineSpec(sigma=sigma[250.0], diameter_mm=250.0, setups=((360.0, sigma[360.0]),)))
    corrected, better, _ = correct_for_size(chosen, 300.0, SizeRule(correct_position=True))
    assert corrected.line.sigma_ct == pytest.approx(1.4, rel=2e-3)
    left, terms, _ = correct_for_size(chosen, 300.0)
    assert left.line.sigma_ct == pytest.approx(1.4 * 0.64**-0.14, rel=2e-3)
    assert [term.name for term in terms] == ["size correction", "rod position"]
    assert better[1].u_mg_cm3 == pytest.approx(terms[1].u_mg_cm3 / 2)
    assert 2.0 * np.hypot(terms[0].u_mg_cm3, terms[1].u_mg_cm3) > 100.0 * (0.64**-0.14 - 1.0)


def test_between_two_sizes_the_power_law_comes_back() -> None:
    """sigma ~ D^-0.2 measured at 25 and 36 cm gives sigma at 30 cm within a thousandth."""
    sigma = {mm: 1.33 * (mm / 300.0) ** -0.2 for mm in (250.0, 300.0, 360.0)}
    chosen = chosen_calibration(LineSpec(sigma=sigma[250.0], diameter_mm=250.0, setups=((360.0, sigma[360.0]),)))
    corrected, terms, flags = correct_for_size(chosen, 300.0)
    assert corrected.line.sigma_ct == pytest.approx(sigma[300.0], rel=1e-3)
    assert terms[0].name == "size correction" and terms[0].u_mg_cm3 < 2.5 and flags == ()
    assert corrected.line.sigma_ref - corrected.line.sigma_ct == pytest.approx(0.2174)


def test_extrapolation_is_limited_costs_more_and_is_flagged() -> None:
    chosen = chosen_calibration(LineSpec(sigma=1.38, diameter_mm=250.0, setups=((300.0, 1.33),)))
    rule = SizeRule()
    far, terms, flags = correct_for_size(chosen, 420.0, rule)
    limit = correct_for_size(chosen, 300.0 * np.exp(rule.max_extrapolation), rule)[0]
    assert far.line.sigma_ct == pytest.approx(limit.line.sigma_ct)
    assert terms[0].u_mg_cm3 > correct_for_size(chosen, 280.0, rule)[1][0].u_mg_cm3
    assert [flag.code for flag in flags] == ["BODY_SIZE"]
