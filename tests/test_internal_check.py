"""The phantomless cross-check: physics of its tables, and a patient painted with ICRU-44 tissues."""

import numpy as np
import pytest

from analysis.internal_check import (
    Tissues,
    check_hu_scale,
    effective_energy_kev,
    expected_hu,
    internal_bmd_mg_cm3,
    measure_tissues,
    model_sigma,
)
from analysis.results import Material
from analysis.volume import CtVolume, axial_affine
from tests.voi_builders import segmentation_from_maps

SCAN = (120.0, 300.0)


def painted_tissues(scale: float = 1.0, offset: float = 0.0) -> Tissues:
    energy = effective_energy_kev(*SCAN)
    return Tissues(*(scale * expected_hu(name, energy) + offset for name in ("air", "fat", "muscle", "blood")))


def test_the_tables_give_the_known_ct_numbers_of_the_tissues() -> None:
    energy = effective_energy_kev(*SCAN)
    assert 65.0 < energy < 75.0
    assert expected_hu("air", energy) == pytest.approx(-999.0, abs=1.0)
    assert -90.0 < expected_hu("fat", energy) < -65.0
    assert 40.0 < expected_hu("muscle", energy) < 60.0


def test_a_harder_beam_and_a_wider_body_raise_the_effective_energy() -> None:
    energies = [effective_energy_kev(kvp, 300.0) for kvp in (80.0, 100.0, 120.0, 140.0)]
    assert energies == sorted(energies) and energies[0] < energies[-1] - 10
    assert effective_energy_kev(120.0, 250.0) < effective_energy_kev(120.0, 360.0)


@pytest.mark.parametrize("material", list(Material))
def test_a_known_density_comes_back_also_on_a_wrong_hu_scale(material: Material) -> None:
    sigma = model_sigma(material, effective_energy_kev(*SCAN))
    for scale, offset in ((1.0, 0.0), (0.98, 4.0), (1.03, -6.0)):
        hu = scale * sigma * 110.0 + offset
        found = internal_bmd_mg_cm3(painted_tissues(scale, offset), hu, SCAN, material)
        assert found == pytest.approx(110.0, abs=0.5)


def test_two_tissues_are_not_enough() -> None:
    assert internal_bmd_mg_cm3(Tissues(-1000.0, -100.0, None, None), 100.0, SCAN, Material.K2HPO4) is None


def test_an_hu_scale_that_is_off_names_the_tissue() -> None:
    assert check_hu_scale(Tissues(-1000.0, -100.0, 50.0, 40.0)) == ()
    reasons = check_hu_scale(Tissues(-940.0, -60.0, 50.0, None))
    assert [reason.code for reason in reasons] == ["HU_SCALE", "HU_SCALE"]
    assert reasons[0].text.startswith("air") and reasons[1].text.startswith("fat")


def test_tissues_are_measured_in_the_images() -> None:
    """An oval of muscle with a ring of fat, in noisy air, around a vertebra."""
    rows, columns = np.mgrid[:120, :160]
    radius = np.hypot((rows - 60) / 45, (columns - 80) / 65)
    section = np.where(radius < 0.8, 48.0, np.where(radius < 1.0, -102.0, -998.0))
    hu = section[None] + np.random.default_rng(0).normal(0, 12, (9, 120, 160))
    labels = np.zeros(hu.shape, dtype=np.uint8)
    labels[:, 60:72, 74:86] = 20
    hu[labels > 0] = 180.0
    volume = CtVolume(hu.astype(np.float32), axial_affine((2.0, 2.0, 2.0), (-160.0, -120.0, 0.0)))
    segmentation = segmentation_from_maps(volume, labels, np.where(labels > 0, 3, 0).astype(np.uint8))
    tissues = measure_tissues(volume, segmentation, 41.0)
    assert tissues.blood_hu == 41.0
    for found, true in ((tissues.air_hu, -998.0), (tissues.fat_hu, -102.0), (tissues.muscle_hu, 48.0)):
        assert found == pytest.approx(true, abs=3.0)
