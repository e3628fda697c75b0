"""Finding and measuring the rods: against a simulator that shares no geometry with the finder, and on real scans."""

import time
from dataclasses import replace

import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from analysis.calibration import fit_calibration
from analysis.errors import AnalysisError, PhantomNotFoundError, PhantomUnusableError
from analysis.phantom import looks_like_phantom, measure_phantom
from analysis.phantom_types import phantom_spec
from analysis.results import PhantomMeasurement, PhantomSetup
from analysis.simulation.phantom_scan import (
    Acquisition,
    Defects,
    PadGeometry,
    PhantomScanSpec,
    Pose,
    SimulatedPhantom,
    simulate_phantom,
)
from analysis.volume import CtVolume, axial_affine
from tests.data import SHARED_DATA, needs_data
from tests.phantom_builders import MODEL_3, SMALL, scan
from tests.timing import shortest_s

WATER_DISPLACED, WATER = 0.2174, 999.6


def measured(spec: PhantomScanSpec) -> tuple[SimulatedPhantom, PhantomMeasurement]:
    simulated = simulate_phantom(spec)
    return simulated, measure_phantom(simulated.volume, spec.phantom)


def assert_accurate(simulated: SimulatedPhantom, found: PhantomMeasurement, kvp: float = 120.0) -> None:
    """Rods within 1 HU or 3 SE, sigma within 0.5 %, beta within 1.5 HU, BMD at 80 and 120 within 1 mg/cm3.

    Where few voxels of a noisy scan leave more than that to chance, within 3 propagated standard errors.
    """
    for rod, truth in zip(found.rods, simulated.rod_hu, strict=True):
        assert abs(rod.hu - truth) <= max(1.0, 3 * rod.standard_error_hu), (rod.name, rod.hu, truth)
    line = fit_calibration(found, MODEL_3, kvp).line
    by_chance = propagated([rod.standard_error_hu for rod in found.rods])
    u_sigma, u_beta = np.sqrt(np.diag(by_chance))
    assert abs(line.sigma_ref - simulated.sigma_ref) <= max(0.005 * simulated.sigma_ref, 3 * u_sigma)
    assert abs(line.beta_ref - simulated.beta_ref) <= max(1.5, 3 * u_beta)
    for bmd in (80.0, 120.0):
        hu = (simulated.sigma_ref - WATER_DISPLACED) * bmd + simulated.beta_ref + WATER
        u_bmd = np.sqrt(np.array([bmd, 1.0]) @ by_chance @ np.array([bmd, 1.0])) / line.sigma_ct
        assert abs(line.to_bmd_mg_cm3(hu) - bmd) <= max(1.0, 3 * u_bmd)


def propagated(standard_errors_hu: list[float]) -> NDArray[np.float64]:
    """Covariance of (sigma, beta) that the rods' noise alone makes, (2, 2)."""
    design = np.array([[rod.density_mg_cm3, 1.0] for rod in MODEL_3.rods])
    gain = np.linalg.pinv(design)
    return gain @ np.diag(np.square(standard_errors_hu)) @ gain.T


def assert_placed(simulated: SimulatedPhantom, found: PhantomMeasurement, within_mm: float = 1.5) -> None:
    """Centres in patient coordinates; the middle of the slices used may lie a slice off the middle of the scan."""
    centres = np.array([rod.centre_lps_mm for rod in found.rods])
    off = np.linalg.norm((centres - np.array(simulated.rod_centres_lps_mm))[:, :2], axis=1)
    assert off.max() < within_mm


def refusal(spec: PhantomScanSpec, phantom: str = "Mindways Model 3 CT") -> str:
    simulated = simulate_phantom(spec)
    with pytest.raises((PhantomUnusableError, PhantomNotFoundError)) as caught:
        measure_phantom(simulated.volume, phantom_spec("4541A", phantom))
    return caught.value.code


@pytest.mark.parametrize("setup", list(PhantomSetup))
def test_the_rods_are_measured_in_every_setup_and_the_setup_is_recognised(setup: PhantomSetup) -> None:
    simulated, found = measured(scan(setup=setup))
    assert_accurate(simulated, found)
    assert_placed(simulated, found)
    assert found.setup is setup
    assert [rod.name for rod in found.rods] == list("ABCDE")
    assert fit_calibration(found, MODEL_3, 120.0).accepted


@pytest.mark.parametrize(
    "pose",
    [
        Pose(tilt_lateral_deg=5.0),
        Pose(tilt_vertical_deg=-5.0),
        Pose(roll_deg=5.0),
        Pose(mirrored=True),
        Pose(upside_down=True),
        Pose(mirrored=True, upside_down=True),
        Pose(shift_mm=(30.0, -20.0, 40.0)),
    ],
)
def test_pose_does_not_matter(pose: Pose) -> None:
    simulated, found = measured(scan(pose=pose))
    assert_accurate(simulated, found)
    assert_placed(simulated, found)
    tilt = float(np.hypot(pose.tilt_lateral_deg, pose.tilt_vertical_deg))
    assert found.tilt_deg == pytest.approx(tilt, abs=0.6)


@pytest.mark.parametrize("kvp", [80.0, 100.0, 120.0, 140.0])
def test_the_slope_follows_the_tube_voltage(kvp: float) -> None:
    simulated, found = measured(scan(acquisition=replace(SMALL, kvp=kvp)))
    assert_accurate(simulated, found, kvp)
    assert fit_calibration(found, MODEL_3, kvp).accepted


@pytest.mark.parametrize("seed", range(1, 7))
def test_the_round_end_of_a_pad_is_not_taken_for_a_rod_of_its_own_density(seed: int) -> None:
    """Rod A of -61 HU at the end of a noisy pad of -68 HU cannot be seen; beyond it the pad ends like a half circle."""
    geometry = PadGeometry(
        rod_diameter_mm=16.0, pitch_mm=26.5, pitch_jitter_mm=0.7, pad_width_mm=140.4, pad_height_mm=24.0, pad_hu=-67.8,
        reversed_order=True,
    )  # fmt: skip
    pose = Pose((-6.7, -12.5, 0.0), 0.4, -1.1, roll_deg=4.0, mirrored=True, upside_down=True)
    acquisition = Acquisition(140.0, 11, 5.0, 512, fov_mm=438.7, noise_hu=37.5, kernel_sigma_mm=0.53, seed=seed)
    simulated = simulate_phantom(PhantomScanSpec(MODEL_3, geometry=geometry, pose=pose, acquisition=acquisition))
    found = measure_phantom(simulated.volume, MODEL_3)
    off_mm = np.array([rod.centre_lps_mm for rod in found.rods]) - np.array(simulated.rod_centres_lps_mm)
    assert np.linalg.norm(off_mm[:, :2], axis=1).max() < 4.0, "the rod's own radius is 8 mm"
    assert_accurate(simulated, found, 140.0)


@pytest.mark.parametrize("pad_hu", [-100.0, -50.0, -35.0, 0.0, 60.0, 150.0])
def test_rods_that_vanish_in_their_pad_are_found_beside_the_others(pad_hu: float) -> None:
    """At -35 and -50 HU rods B and A have hardly any contrast; their place follows from C, D and E."""
    simulated, found = measured(scan(geometry=PadGeometry(pad_hu=pad_hu)))
    assert_accurate(simulated, found)


@pytest.mark.parametrize(
    "geometry",
    [
        PadGeometry(rod_diameter_mm=12.0, pitch_mm=20.0, pad_height_mm=18.0),
        PadGeometry(rod_diameter_mm=26.0, pitch_mm=42.0, pad_height_mm=34.0),
        PadGeometry(arc_radius_mm=220.0),
        PadGeometry(pitch_jitter_mm=1.0),
        PadGeometry(reversed_order=True),
        PadGeometry(pitch_mm=24.0, rod_diameter_mm=18.0, pad_width_mm=250.0),
    ],
)
def test_the_drawing_of_the_phantom_need_not_be_known(geometry: PadGeometry) -> None:
    simulated, found = measured(scan(geometry=geometry))
    assert_accurate(simulated, found)
    assert_placed(simulated, found)


def test_noise_of_40_hu_still_gives_the_weak_rods() -> None:
    """60 mm of rod: the weak rods stand 35 HU above noise of 40 HU in each voxel."""
    simulated, found = measured(scan(acquisition=replace(SMALL, noise_hu=40.0, slices=24)))
    for rod, truth in zip(found.rods, simulated.rod_hu, strict=True):
        assert abs(rod.hu - truth) <= max(1.0, 3 * rod.standard_error_hu)
    assert_placed(simulated, found)


def test_only_the_part_of_a_long_scan_that_shows_the_rods_is_used() -> None:
    shot = replace(SMALL, slices=50, spacing_mm=5.0)
    simulated, found = measured(scan(acquisition=shot, geometry=PadGeometry(rod_length_mm=120.0)))
    assert_accurate(simulated, found)
    per_slice = np.pi * (0.6 * 9.5) ** 2 / (400 / 320) ** 2
    assert 15 * per_slice < found.rods[0].n_voxels < 25 * per_slice


@settings(
    max_examples=8,
    deadline=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.too_slow],
)
@given(
    diameter_mm=st.floats(14.0, 24.0),
    gap_mm=st.floats(7.0, 14.0),
    arc_mm=st.sampled_from([0.0, 250.0, 400.0]),
    pad_hu=st.floats(-100.0, 100.0),
    tilt_deg=st.floats(-3.5, 3.5),
    roll_deg=st.floats(-4.0, 4.0),
    noise_hu=st.floats(3.0, 25.0),
    setup=st.sampled_from(list(PhantomSetup)),
    seed=st.integers(0, 1000),
)
def test_any_likely_geometry_and_noise_is_measured_within_the_limits(
    diameter_mm: float, gap_mm: float, arc_mm: float, pad_hu: float, tilt_deg: float, roll_deg: float, noise_hu: float,
    setup: PhantomSetup, seed: int,
) -> None:  # fmt: skip
    geometry = PadGeometry(
        rod_diameter_mm=diameter_mm, pitch_mm=diameter_mm + gap_mm, arc_radius_mm=arc_mm, pad_hu=pad_hu,
        pad_height_mm=diameter_mm + 8, pad_width_mm=5 * (diameter_mm + gap_mm) + 10,
    )  # fmt: skip
    shot = replace(SMALL, noise_hu=noise_hu, seed=seed, kernel_sigma_mm=0.5 + (seed % 5) / 10)
    simulated, found = measured(
        scan(setup=setup, geometry=geometry, acquisition=shot, pose=Pose(tilt_vertical_deg=tilt_deg, roll_deg=roll_deg))
    )
    assert_accurate(simulated, found)


def test_cupping_of_the_whole_field_is_part_of_what_the_rods_read() -> None:
    simulated, found = measured(scan(acquisition=replace(SMALL, cupping_hu=10.0)))
    for rod, truth in zip(found.rods, simulated.rod_hu, strict=True):
        assert abs(rod.hu - truth) <= max(1.0, 3 * rod.standard_error_hu)


@pytest.mark.parametrize("name", ["QRM-BDC/3", "QRM-BDC/6", "Kyoto Kagaku B-MAS200", "Image Analysis QCT-3D Plus"])
def test_hydroxyapatite_phantoms_are_measured_too(name: str) -> None:
    spec = phantom_spec("HA-1", name)
    simulated, found = measured(scan(phantom=spec, sigma_ref=1.35, beta_ref=2.0, geometry=PadGeometry(pad_hu=20.0)))
    for rod, truth in zip(found.rods, simulated.rod_hu, strict=True):
        assert abs(rod.hu - truth) <= max(1.0, 3 * rod.standard_error_hu)


@pytest.mark.parametrize("reversed_order", [False, True])
def test_a_phantom_of_two_rods_is_measured_and_named_by_its_slope(reversed_order: bool) -> None:
    """Two rods fit any line: only a positive, physical slope tells which is which."""
    spec = phantom_spec("O-1", "Siemens OSTEO")
    geometry = PadGeometry(pad_hu=-100.0, pitch_mm=28.0, reversed_order=reversed_order)
    simulated, found = measured(scan(phantom=spec, sigma_ref=1.35, beta_ref=2.0, geometry=geometry))
    for rod, truth in zip(found.rods, simulated.rod_hu, strict=True):
        assert abs(rod.hu - truth) <= max(1.0, 3 * rod.standard_error_hu)


def test_a_body_of_two_tubes_is_not_a_phantom_of_two_rods() -> None:
    with pytest.raises(PhantomNotFoundError):
        measure_phantom(body_without_phantom(40.0), phantom_spec("O-1", "Siemens OSTEO"))


def test_one_rod_makes_no_line() -> None:
    with pytest.raises(PhantomUnusableError) as caught:
        measure_phantom(simulate_phantom(scan()).volume, replace(MODEL_3, rods=MODEL_3.rods[:1]))
    assert caught.value.code == "PHANTOM_TYPE_UNSUPPORTED"


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"pose": Pose(shift_mm=(160.0, 0.0, 0.0))}, "RODS_OUTSIDE_FOV"),
        ({"pose": Pose(shift_mm=(-160.0, 0.0, 0.0))}, "RODS_OUTSIDE_FOV"),
        ({"defects": Defects(metal_rod=2)}, "ROD_DISTURBED"),
        ({"defects": Defects(metal_rod=4)}, "ROD_DISTURBED"),
        ({"defects": Defects(air_rod=3)}, "ROD_DISTURBED"),
        ({"defects": Defects(air_rod=0)}, "ROD_DISTURBED"),
        ({"defects": Defects(air_gap_mm=25.0)}, "AIR_GAP"),
        ({"defects": Defects(insert_hu=60.0)}, "ROD_DISTURBED"),
        ({"defects": Defects(moved_mm=6.0), "acquisition": replace(SMALL, slices=32)}, "PHANTOM_MOVED"),
        ({"acquisition": replace(SMALL, slices=3)}, "TOO_FEW_PHANTOM_SLICES"),
        ({"pose": Pose(tilt_lateral_deg=10.0)}, "PHANTOM_TILTED"),
    ],
)
def test_a_phantom_that_cannot_be_measured_is_told_why(changes: dict[str, object], code: str) -> None:
    assert refusal(scan(**changes)) == code


def test_the_rods_of_another_phantom_do_not_fit_the_stated_serial() -> None:
    other = phantom_spec("B-1", "Kyoto Kagaku B-MAS200")
    assert (
        refusal(scan(phantom=other, sigma_ref=1.4, beta_ref=0.0, geometry=PadGeometry(pad_hu=-100.0)))
        == "WRONG_PHANTOM"
    )


def test_a_shuffled_phantom_is_named_by_value_with_a_finding_only_while_its_geometry_is_unverified() -> None:
    shuffled = replace(MODEL_3, rods=tuple(MODEL_3.rods[i] for i in (2, 0, 4, 1, 3)))
    simulated = simulate_phantom(scan(phantom=shuffled))
    found = measure_phantom(simulated.volume, MODEL_3)
    assert "ROD_ORDER_DIFFERS" in {finding.code for finding in found.findings}
    truth = dict(zip((rod.name for rod in shuffled.rods), simulated.rod_hu, strict=True))
    assert all(abs(rod.hu - truth[rod.name]) < 1.0 for rod in found.rods)
    with pytest.raises(PhantomUnusableError) as caught:
        measure_phantom(simulated.volume, replace(MODEL_3, geometry_verified=True))
    assert caught.value.code == "ROD_ASSIGNMENT_AMBIGUOUS"


def body_without_phantom(hu_inside: float, noise_hu: float = 10.0) -> CtVolume:
    """A water ellipse with a vertebra and an aorta, no phantom."""
    y, x = np.mgrid[-160:160, -160:160] * 1.25
    slice_ = np.where(np.hypot(x / 150, y / 105) < 1, hu_inside, -1000.0)
    slice_[np.hypot(x, y - 40) < 20] = 150.0
    slice_[np.hypot(x + 12, y - 5) < 10] = 45.0
    noise = np.random.default_rng(3).normal(0, noise_hu, (16, *slice_.shape))
    return CtVolume((slice_ + noise).astype(np.float32), axial_affine((2.5, 1.25, 1.25), (0.0, 0.0, 0.0)))


def test_a_row_of_ribs_that_goes_straight_through_a_short_scan_is_not_a_phantom() -> None:
    """Round at every slice and at one pitch, as rods are, but mottled: bone and marrow within what would be a rod."""
    y, x = np.mgrid[-160:160, -160:160] * 1.25
    slice_ = np.where(np.hypot(x / 150, y / 105) < 1, 40.0, -1000.0)
    for place in range(5):
        distance = np.hypot(x + 60 - 30 * place, y - 70)
        slice_[distance < 9] = 90.0
        slice_[distance < (4 if place % 2 else 0)] = 420.0
        slice_[distance < 2] = -60.0
    noise = np.random.default_rng(3).normal(0, 10, (24, *slice_.shape))
    volume = CtVolume((slice_ + noise).astype(np.float32), axial_affine((2.5, 1.25, 1.25), (0.0, 0.0, 0.0)))
    with pytest.raises(PhantomNotFoundError) as caught:
        measure_phantom(volume, MODEL_3)
    assert caught.value.code == "NOT_A_PHANTOM"


@pytest.mark.parametrize(
    "volume", [body_without_phantom(0.0), body_without_phantom(40.0, 40.0)], ids=["water", "tissue"]
)
def test_a_body_without_rods_is_not_a_phantom(volume: CtVolume) -> None:
    with pytest.raises(PhantomNotFoundError, match="expected the 5 parallel rods"):
        measure_phantom(volume, MODEL_3)
    assert not looks_like_phantom(volume, (MODEL_3,))


def test_a_phantom_under_another_name_is_recognised_quickly() -> None:
    volume = simulate_phantom(PhantomScanSpec(MODEL_3, acquisition=Acquisition(noise_hu=20.0))).volume

    def recognised_s() -> float:
        started = time.process_time()
        assert looks_like_phantom(volume, (phantom_spec("1", "QRM-BDC/6"), MODEL_3))
        return time.process_time() - started

    assert shortest_s(recognised_s, 2.0) < 2.0


def test_forty_slices_of_512_are_measured_in_under_three_seconds() -> None:
    simulated = simulate_phantom(PhantomScanSpec(MODEL_3))

    def measured_s() -> float:
        started = time.process_time()
        found = measure_phantom(simulated.volume, MODEL_3)
        passed_s = time.process_time() - started
        assert_accurate(simulated, found)
        return passed_s

    assert shortest_s(measured_s, 3.0) < 3.0


def real_series(folder: str) -> list[CtVolume]:
    """Every series of a folder of real CT, slices in order."""
    series: dict[str, list[pydicom.Dataset]] = {}
    for path in sorted((SHARED_DATA / folder).rglob("*")):
        if path.is_file() and (ds := pydicom.dcmread(path, force=True)).get("PixelData"):
            series.setdefault(ds.SeriesInstanceUID, []).append(ds)
    return [_volume(sorted(slices, key=lambda ds: float(ds.ImagePositionPatient[2]))) for slices in series.values()]


def _volume(slices: list[pydicom.Dataset]) -> CtVolume:
    hu = np.stack([ds.pixel_array * float(ds.RescaleSlope) + float(ds.RescaleIntercept) for ds in slices])
    z = [float(ds.ImagePositionPatient[2]) for ds in slices]
    spacing = (z[1] - z[0]) if len(z) > 1 else 5.0
    rows_mm, columns_mm = (float(v) for v in slices[0].PixelSpacing)
    return CtVolume(
        np.maximum(hu, -1024).astype(np.float32), axial_affine((spacing, rows_mm, columns_mm), (0.0, 0.0, 0.0))
    )


@needs_data
@pytest.mark.parametrize("folder", ["phantom-ctqa", "crlm-1004", "acrin-flt-001", "slab-dicom"])
def test_real_scans_of_patients_and_of_a_quality_phantom_are_not_calibration_phantoms(folder: str) -> None:
    for volume in real_series(folder):
        started = time.process_time()
        with pytest.raises(AnalysisError) as caught:
            measure_phantom(volume, MODEL_3)
        assert caught.value.code == "NOT_A_PHANTOM"
        assert "expected" in caught.value.text
        assert time.process_time() - started < 10.0
        assert not looks_like_phantom(volume, (MODEL_3,))
