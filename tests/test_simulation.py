"""The simulated patient: its truth holds in the CT, its anatomy has human sizes, sides, order and numbering."""

import ast
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import binary_erosion, distance_transform_edt

from analysis.simulation.marrow import Extras, MarrowSpec
from analysis.simulation.organs import Tissue
from analysis.simulation.patient import (
    PatientSpec,
    SimulatedPatient,
    random_patient,
    scan_torso,
    simulate_patient,
)
from analysis.simulation.physics import Phase, TissueSpec
from analysis.simulation.scanner import AcquisitionSpec, Kernel
from analysis.simulation.skeleton import Part
from analysis.simulation.spine_curve import Fracture, FractureKind, SpineSpec, Variant
from analysis.simulation.torso import Torso, TorsoSpec, make_torso

SMALL = AcquisitionSpec(rows=256, columns=256, pixel_spacing_mm=0.6, slice_interval_mm=1.25, noise_sd_hu=0.0)
FEW = replace(SMALL, rows=128, columns=128, pixel_spacing_mm=0.9)
LINE = TissueSpec(sigma_hu_per_mg=1.34, beta_hu=5.0)


def spine_of(first: str, last: str, **changes: object) -> TorsoSpec:
    """A short field of view without the far organs, margin wide enough for whole vertebrae."""
    return replace(TorsoSpec(first=first, last=last, spine_only=True, margin_mm=18.0, seed=3), **changes)  # type: ignore[arg-type]


def core_of(patient: SimulatedPatient, name: str, steps: int = 4) -> np.ndarray:
    level = next(v for v in patient.truth if v.name == name)
    return binary_erosion((patient.labels == level.label) & (patient.body == 3), iterations=steps)


def extent_mm(mask: np.ndarray, spacing_mm: float) -> tuple[float, float, float]:
    """Size of a mask along z, y, x."""
    spans = [np.flatnonzero(mask.any(axis=tuple({0, 1, 2} - {a}))) for a in range(3)]
    return spacing_mm * float(np.ptp(spans[0]) + 1), spacing_mm * float(np.ptp(spans[1]) + 1), spacing_mm * float(
        np.ptp(spans[2]) + 1)


@pytest.fixture(scope="module")
def lumbar() -> SimulatedPatient:
    marrow = MarrowSpec(densities_mg_cm3=(("L1", 95.0), ("L2", 130.0)))
    return simulate_patient(PatientSpec(spine_of("L1", "L2", marrow=marrow), LINE, SMALL))


@pytest.fixture(scope="module")
def whole() -> Torso:
    """T1 to the sacrum with organs on a coarse grid (1.5 and 3 mm)."""
    return make_torso(TorsoSpec(first="T1", last="S"), 1.5)


@pytest.mark.parametrize("name", ["L1", "L2"])
def test_core_hu_is_the_line_of_the_known_density(lumbar: SimulatedPatient, name: str) -> None:
    core = core_of(lumbar, name)
    assert core.sum() > 3000
    expected = LINE.sigma_hu_per_mg * lumbar.density_mg_cm3[core].mean() + LINE.beta_hu
    assert abs(float(lumbar.volume.hu[core].mean()) - expected) < 0.7


@pytest.mark.parametrize(("name", "density"), [("L1", 95.0), ("L2", 130.0)])
def test_truth_holds_the_density_that_was_asked_for(lumbar: SimulatedPatient, name: str, density: float) -> None:
    level = next(v for v in lumbar.truth if v.name == name)
    assert abs(level.density_mg_cm3 - density) < 0.5
    assert level.complete


def test_cut_vertebrae_are_not_complete(lumbar: SimulatedPatient) -> None:
    assert {v.name for v in lumbar.truth if v.complete} == {"L1", "L2"}
    assert {v.name for v in lumbar.truth} > {"L1", "L2"}


def test_cortex_shows_as_a_bright_shell_round_darker_marrow(lumbar: SimulatedPatient) -> None:
    body = lumbar.labels == 20
    cortex, marrow = (lumbar.volume.hu[body & (lumbar.body == k)].mean() for k in (2, 3))
    assert 180 < cortex < 650                            # apparent cortex in CT, mean 256 SD 197 in a real corpus
    assert marrow < cortex - 60


def test_bodies_have_the_cited_sizes(whole: Torso) -> None:
    """Panjabi 1991/92, upper endplate width and depth and posterior height, times 1.05 for a man (mm)."""
    cited = {"T4": (8 + 3, 24.5, 23.0, 16.2), "T8": (15, 29.5, 28.0, 18.7), "T12": (19, 39.0, 33.0, 22.7),
             "L1": (20, 41.0, 34.0, 23.8), "L3": (22, 44.0, 34.7, 23.8), "L5": (24, 47.3, 34.7, 22.9)}
    for name, (label, width, depth, height) in cited.items():
        placed = next(v for v in whole.placed if v.name == name)
        mask = (whole.spine.labels == label) & (whole.body >= 2)
        _, _, x = extent_mm(mask, whole.spine.grid.spacing_mm)
        assert abs(x - 1.05 * width) < 3.5, name
        assert abs(placed.size.depth_mm - 1.05 * depth) < 3.0, name
        assert abs(placed.size.posterior_height_mm - 1.025 * height) < 2.0, name


def test_bodies_grow_and_spacing_widens_from_t4_to_l5(whole: Torso) -> None:
    chain = [v for v in whole.placed if 11 <= v.label <= 24]
    widths = [v.size.width_mm for v in chain]
    steps = -np.diff([v.frame.origin_mm[2] for v in chain])
    assert widths == sorted(widths)
    assert 17 < steps[0] < 24 and 31 < steps[-2] < 42


def test_sides_and_ends_follow_lps(whole: Torso) -> None:
    """+x left, +y back, +z head; liver right, spleen left, aorta left of the vena cava and in front of the spine."""
    grid = whole.organs.grid

    def middle(tissue: Tissue, low: float = -40.0, high: float = 110.0) -> np.ndarray:
        keep = (whole.organs.tissue == tissue) & ((grid.axis_mm(0) > low) & (grid.axis_mm(0) < high))[:, None, None]
        return np.array([grid.axis_mm(a)[i].mean() for a, i in zip((2, 1, 0), np.nonzero(keep)[::-1], strict=True)])

    z = [v.frame.origin_mm[2] for v in whole.placed]
    assert z == sorted(z, reverse=True)
    assert middle(Tissue.LIVER)[0] < -30 and middle(Tissue.SPLEEN)[0] > 30
    assert middle(Tissue.AORTA, 0, 80)[0] > middle(Tissue.VEIN, 0, 80)[0] + 8
    assert middle(Tissue.AORTA, 0, 80)[1] < -20
    assert middle(Tissue.PARASPINAL)[1] > 30


def test_kidneys_lie_beside_l1_to_l3_and_psoas_beside_the_lumbar_bodies(whole: Torso) -> None:
    grid, by_name = whole.organs.grid, {v.name: v.frame.origin_mm[2] for v in whole.placed}
    kidney = whole.organs.tissue == Tissue.KIDNEY
    for side in (-1, 1):
        z = grid.axis_mm(0)[np.nonzero(kidney & (np.sign(grid.axis_mm(2)) == side)[None, None])[0]]
        assert by_name["L3"] < z.mean() < by_name["T12"]
    row = np.argmin(np.abs(grid.axis_mm(0) - by_name["L4"])), np.argmin(np.abs(grid.axis_mm(1) - 3))
    for x in (-43, 43):
        assert whole.organs.tissue[row[0], row[1], np.argmin(np.abs(grid.axis_mm(2) - x))] == Tissue.MUSCLE


def _rib_gap_mm(torso: Torso, label: int) -> float:
    """From a vertebra's body to the nearest rib."""
    ribs = (torso.spine.part == Part.RIB) & (torso.spine.distance < 0)
    away = distance_transform_edt(~ribs) * torso.spine.grid.spacing_mm
    return float(away[(torso.spine.labels == label) & (torso.body >= 2)].min())


@pytest.mark.parametrize(("variant", "last_rib", "first_free"),
                         [(Variant.USUAL, 19, 20), (Variant.THIRTEEN_RIBS, 28, 20), (Variant.FOUR_LUMBAR, 19, 20)])
def test_last_rib_sits_on_the_last_thoracic_vertebra(variant: Variant, last_rib: int, first_free: int) -> None:
    torso = make_torso(spine_of("T11", "L2", spine=SpineSpec(variant=variant)), 1.0)
    assert _rib_gap_mm(torso, last_rib) < 5.0
    assert _rib_gap_mm(torso, first_free) > 12.0


def test_variants_change_the_count_between_ribs_and_sacrum() -> None:
    def labels(variant: Variant) -> set[int]:
        torso = make_torso(spine_of("T12", "S", spine=SpineSpec(variant=variant)), 2.0)
        return {int(v) for v in np.unique(torso.spine.labels)} - {0}

    usual = labels(Variant.USUAL)
    assert {20, 21, 22, 23, 24, 26} <= usual and 25 not in usual
    assert 25 in labels(Variant.SIX_LUMBAR)
    assert 24 not in labels(Variant.FOUR_LUMBAR)


def test_crop_changes_neither_numbering_nor_place_nor_density() -> None:
    wide, narrow = (make_torso(spine_of(*ends), 1.0) for ends in (("T12", "L3"), ("L1", "L2")))
    for name in ("L1", "L2"):
        one, other = (next(v for v in p.levels if v.name == name) for p in (wide, narrow))
        assert one.label == other.label
        assert np.allclose(one.centroid_lps_mm, other.centroid_lps_mm)
        assert abs(one.density_mg_cm3 - other.density_mg_cm3) < 0.01


def test_same_seed_gives_the_same_scan_and_another_seed_another() -> None:
    noisy = replace(FEW, noise_sd_hu=15.0, seed=11)
    spec = replace(random_patient(11, "L1", "L2"), acquisition=noisy, model_spacing_mm=1.0)
    spec = replace(spec, torso=replace(spec.torso, spine_only=True))
    one, two = simulate_patient(spec), simulate_patient(spec)
    other = simulate_patient(replace(spec, torso=replace(spec.torso, seed=12)))
    assert np.array_equal(one.volume.hu, two.volume.hu) and np.array_equal(one.labels, two.labels)
    assert not np.array_equal(one.density_mg_cm3, other.density_mg_cm3)


def test_turned_patient_keeps_truth_and_labels_together() -> None:
    spec = PatientSpec(spine_of("L1", "L2", angles_deg=(10.0, -8.0, 15.0), shift_mm=(3.3, -2.1, 40.7)), LINE, FEW)
    patient = simulate_patient(spec)
    for level in (v for v in patient.truth if v.complete):
        index = np.argwhere((patient.labels == level.label) & (patient.body >= 2)).astype(float)
        found = patient.volume.to_lps_mm(index).mean(axis=0)
        assert np.linalg.norm(found - level.centroid_lps_mm) < 2.0
    core = core_of(patient, "L1", 3)
    expected = LINE.sigma_hu_per_mg * patient.density_mg_cm3[core].mean() + LINE.beta_hu
    assert abs(float(patient.volume.hu[core].mean()) - expected) < 1.0


@pytest.mark.parametrize(("kind", "anterior", "posterior"),
                         [(FractureKind.WEDGE, 0.745, 0.955), (FractureKind.CRUSH, 0.7, 0.7)])
def test_fracture_takes_height_where_its_kind_says(kind: FractureKind, anterior: float, posterior: float) -> None:
    """Measured at 15 and 85 % of the depth; a wedge of 30 % leaves 1 - 0.3 * 0.85 and 1 - 0.3 * 0.15 there."""
    def heights(spine: SpineSpec) -> tuple[float, float]:
        torso = make_torso(spine_of("L1", "L2", spine=spine), 0.75)
        vertebra = next(v for v in torso.placed if v.name == "L1")
        body = (torso.spine.labels == 20) & (torso.body >= 2)
        x = int(np.argmin(np.abs(torso.spine.grid.axis_mm(2))))
        rows = np.flatnonzero(body[:, :, x].any(axis=0))
        front, back = rows[3 * len(rows) // 20], rows[17 * len(rows) // 20]
        assert vertebra.label == 20
        return tuple(0.75 * float(body[:, r, x].sum()) for r in (front, back))  # type: ignore[return-value]

    sound = heights(SpineSpec())
    broken = heights(SpineSpec(fractures=(Fracture("L1", kind, 0.3),)))
    assert abs(broken[0] / sound[0] - anterior) < 0.08
    assert abs(broken[1] / sound[1] - posterior) < 0.08


def test_noise_has_the_given_sd_at_the_spine_and_is_correlated() -> None:
    spec = PatientSpec(spine_of("L1", "L1"), LINE, SMALL, model_spacing_mm=1.5)
    torso = make_torso(spec.torso, 1.5)
    clean = scan_torso(torso, spec).volume.hu.astype(float)
    noisy = scan_torso(torso, replace(spec, acquisition=replace(SMALL, noise_sd_hu=20.0))).volume.hu - clean
    middle = noisy[:, 115:145, 115:145]
    assert abs(float(middle.std()) / 20.0 - 1) < 0.1
    lag = np.corrcoef(middle[..., 1:].ravel(), middle[..., :-1].ravel())[0, 1]
    assert 0.3 < lag < 0.9
    assert abs(float(noisy[:, 60:200, 60:200].mean())) < 0.3


def test_sharp_kernel_overshoots_and_soft_kernel_blurs() -> None:
    spec = PatientSpec(spine_of("L1", "L1"), LINE, SMALL)
    torso = make_torso(spec.torso, 0.75)
    peak = {}
    for kernel in Kernel:
        patient = scan_torso(torso, replace(spec, acquisition=replace(SMALL, kernel=kernel)))
        peak[kernel] = float(np.percentile(patient.volume.hu[(patient.labels == 20) & (patient.body == 2)], 90))
    assert peak[Kernel.SHARP] > peak[Kernel.STANDARD] + 30 > peak[Kernel.SOFT] + 30


def test_body_size_effect_scales_the_contrast_of_bone() -> None:
    spec = PatientSpec(spine_of("L1", "L1"), LINE, SMALL)
    torso = make_torso(spec.torso, 0.75)
    full, less = (scan_torso(torso, replace(spec, acquisition=replace(SMALL, slope_loss=loss))) for loss in (0.0, 0.05))
    core = core_of(full, "L1")
    ratio = (less.volume.hu[core].mean() - LINE.beta_hu) / (full.volume.hu[core].mean() - LINE.beta_hu)
    assert abs(float(ratio) - 0.95) < 0.005


def test_findings_and_contrast_show_in_the_ct() -> None:
    extras = Extras(islands=(("L1", 4.0),), cement=("L2",), screws=("L3",))
    spec = PatientSpec(spine_of("L1", "L3", extras=extras), replace(LINE, phase=Phase.ARTERIAL), SMALL, 1.0)
    patient = simulate_patient(spec)
    by_label = {k: patient.volume.hu[(patient.labels == k) & (patient.body == 3)] for k in (20, 21, 22)}
    assert 500 < by_label[20].max() < 1000
    assert by_label[21].max() > 1500 and by_label[22].max() > 2500
    torso = make_torso(spec.torso, 1.0)
    grid, (z0, y0, x0) = torso.organs.grid, patient.volume.affine[:3, 3][::-1]
    aorta = np.argwhere(torso.organs.tissue == Tissue.AORTA).mean(axis=0)
    z, y, x = (grid.axis_mm(a)[int(aorta[a])] for a in range(3))
    steps = zip((z, y, x), (z0, y0, x0), patient.volume.spacing_mm, strict=True)
    at = tuple(round((place - origin) / step) for place, origin, step in steps)
    assert patient.volume.hu[at] > 200


def test_outside_the_reconstruction_circle_lies_padding() -> None:
    patient = simulate_patient(PatientSpec(spine_of("L1", "L1"), LINE, replace(SMALL, padding_hu=-2000.0), 1.5))
    assert (patient.volume.hu[:, 0, 0] == -2000).all()
    assert patient.volume.hu[:, 128, 128].min() > -300


def test_thick_slices_and_other_pixels_keep_the_mean_density() -> None:
    spec = spine_of("L1", "L2")
    torso = make_torso(spec, 0.75)
    for interval, pixel in ((0.625, 0.5), (3.0, 0.9), (5.0, 0.8)):
        protocol = replace(SMALL, slice_interval_mm=interval, slice_thickness_mm=interval, pixel_spacing_mm=pixel,
                           rows=160, columns=160)
        patient = scan_torso(torso, PatientSpec(spec, LINE, protocol))
        weight = distance_transform_edt(np.pad((patient.labels == 20) & (patient.body == 3), 1),
                                        sampling=patient.volume.spacing_mm)[1:-1, 1:-1, 1:-1] > max(4.0, 1.3 * interval)
        found = (float(patient.volume.hu[weight].mean()) - LINE.beta_hu) / LINE.sigma_hu_per_mg
        assert abs(found - float(patient.density_mg_cm3[weight].mean())) < 0.6, (interval, pixel)


@pytest.mark.parametrize("seed", range(3))
def test_random_patients_can_be_built_and_named(seed: int) -> None:
    first, last = (("T10", "S"), ("T1", "L2"), ("T12", "L3"))[seed % 3]
    torso = make_torso(random_patient(seed, first, last).torso, 2.0)
    names = [v.name for v in torso.levels]
    assert names.index("L1") + 1 == names.index("L2")
    assert all(0 < v.density_mg_cm3 < 260 for v in torso.levels if v.complete)


def test_simulation_imports_no_analysis_step() -> None:
    """Only volume, results, errors and its own package: the truth must not depend on what it is to judge."""
    allowed = {"analysis.volume", "analysis.results", "analysis.errors"}
    for path in sorted((Path(__file__).parent.parent / "analysis" / "simulation").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            name = node.module if isinstance(node, ast.ImportFrom) else None
            if name and name.startswith("analysis") and not name.startswith("analysis.simulation"):
                assert name in allowed, f"{path.name} imports {name}"
