"""The 93 features: the library's own baseline, the IBSI phantom, and what the library would answer silently."""

import ast
import csv
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from analysis.extraction_contract import PAPER_CONTRACT, ExtractionContract, contract_for
from analysis.feature_names import FEATURE_NAMES, FEATURES_BY_CLASS, SIGNATURE_SEED
from analysis.radiomic_features import compute_features, extract_features, resample_voi
from analysis.volume import CtVolume, axial_affine
from node.codes import feature_codes
from tests.data import SHARED_DATA, needs_data
from tests.ibsi_tags import TAGS
from tests.radiomics_builders import box_voi, marrow, noise_volume

SOURCE = Path(os.environ.get("PYRADIOMICS_SOURCE", Path(__file__).resolve().parents[1] / ".venv/pyradiomics-source"))
needs_source = pytest.mark.skipif(
    not (SOURCE / "data/baseline").is_dir(),
    reason=f"no source package of pyradiomics 3.0.1 at {SOURCE}; run `make test` or set PYRADIOMICS_SOURCE",
)
SHIFT_HU = 2000.0  # the baseline's voxelArrayShift, added before squaring


def test_the_features_are_the_93_of_the_published_table() -> None:
    counts = {family: len(names) for family, names in FEATURES_BY_CLASS.items()}
    assert counts == {"firstorder": 18, "glcm": 24, "glrlm": 16, "glszm": 16, "gldm": 14, "ngtdm": 5}
    assert len(set(FEATURE_NAMES)) == 93 and set(SIGNATURE_SEED) < set(FEATURE_NAMES)
    assert set(feature_codes()) == set(FEATURE_NAMES)


@needs_source
@pytest.mark.parametrize("case", ["brain1", "brain2", "breast1", "lung1", "lung2"])
def test_every_feature_equals_the_library_s_own_baseline_to_1e_6(case: str) -> None:
    image, label = (sitk.ReadImage(str(SOURCE / f"data/{case}_{kind}.nrrd")) for kind in ("image", "label"))
    hu, mask = sitk.GetArrayFromImage(image).astype(float), sitk.GetArrayFromImage(label) == 1
    found = dict(zip(FEATURE_NAMES, compute_features(hu, mask, PAPER_CONTRACT), strict=True))
    n = int(mask.sum())
    found["firstorder_Energy"] += 2 * SHIFT_HU * n * found["firstorder_Mean"] + n * SHIFT_HU**2
    found["firstorder_RootMeanSquared"] = float(np.sqrt(found["firstorder_Energy"] / n))
    found["firstorder_TotalEnergy"] = found["firstorder_Energy"] * float(np.prod(image.GetSpacing()))
    for family, names in FEATURES_BY_CLASS.items():
        with (SOURCE / f"data/baseline/baseline_{family}.csv").open(newline="") as file:
            rows = {row["featureName"]: row[case] for row in csv.DictReader(file)}
        assert ast.literal_eval(rows["diagnostics_Configuration_Settings"])["binWidth"] == PAPER_CONTRACT.bin_width_hu
        for name in names:
            expected = float(rows[f"original_{family}_{name}"])
            assert found[f"{family}_{name}"] == pytest.approx(expected, rel=1e-6, abs=1e-9), name


@needs_data
@pytest.mark.parametrize("anchor", [None, 1.0])
def test_the_ibsi_phantom_agrees_in_all_tagged_features_but_kurtosis(anchor: float | None) -> None:
    folder = SHARED_DATA / "ibsi-digital"
    image, label = (sitk.ReadImage(str(folder / f"{kind}.nii.gz")) for kind in ("image", "mask"))
    contract = ExtractionContract(grid_mm=2.0, bin_width_hu=1.0, bin_anchor_hu=anchor)
    hu, mask = sitk.GetArrayFromImage(image).astype(float), sitk.GetArrayFromImage(label) > 0
    found = dict(zip(FEATURE_NAMES, compute_features(hu, mask, contract), strict=True))
    with (folder / "reference.csv").open(newline="") as file:
        reference = {row["tag"]: row["reference value"] for row in csv.DictReader(file, delimiter=";")}
    assert len(TAGS) == 91
    outside = [name for name, tag in TAGS.items() if not _agrees(found[name], reference[tag])]
    assert outside == ["firstorder_Kurtosis"]
    assert found["firstorder_Kurtosis"] - 3 == pytest.approx(float(reference["stat_kurt"]), abs=0.0005)
    assert feature_codes()["firstorder_Kurtosis"].added == -3


def _agrees(value: float, said: str) -> bool:
    """The reference is rounded to three digits; half a unit of its last digit is allowed."""
    mantissa = said.lstrip("-").replace(".", "").lstrip("0")
    step = 10.0 ** -len(said.split(".")[1]) if "." in said else 10.0 ** max(len(mantissa) - 3, 0)
    return abs(value - float(said)) <= 0.5 * step * (1 + 1e-9) + 1e-12


def test_cropping_changes_nothing() -> None:
    volume, voi = marrow()[0]
    hu, mask = resample_voi(volume, voi, 1.0)
    contract = ExtractionContract()
    wide = np.pad(hu, 9, constant_values=-1000.0)
    near = np.array(compute_features(hu, mask, contract))
    far = np.array(compute_features(wide, np.pad(mask, 9), contract))
    np.testing.assert_allclose(far, near, rtol=1e-12)


def test_a_voi_counts_the_same_wherever_it_lies_in_the_volume() -> None:
    volume, voi = marrow()[0]
    shifted = CtVolume(np.pad(volume.hu, ((3, 4), (5, 6), (7, 8)), mode="edge"), volume.affine)
    moved = replace(voi, start=(3, 5, 7))
    assert extract_features(shifted, moved).values == pytest.approx(extract_features(volume, voi).values, rel=1e-12)


def test_the_six_feature_path_gives_the_values_of_the_full_path() -> None:
    volume, voi = marrow()[1]
    full = extract_features(volume, voi)
    every = dict(zip(full.names, full.values, strict=True))
    six = extract_features(volume, voi, names=SIGNATURE_SEED)
    assert six.names == SIGNATURE_SEED
    assert six.values == pytest.approx([every[name] for name in SIGNATURE_SEED], rel=1e-12)


def test_a_mask_that_fills_its_array_is_described() -> None:
    values = compute_features(noise_volume().hu.astype(float), np.ones((12, 24, 24), bool), ExtractionContract())
    assert len(values) == 93 and np.isfinite(values).all()


def test_partial_voxels_count_from_half_on() -> None:
    weights = np.full((12, 24, 24), 0.49, np.float32)
    weights[:, :, 4:20] = 0.51
    _, mask = resample_voi(noise_volume(), box_voi((12, 24, 24), weights), 1.0)
    assert mask.any(axis=(0, 1)).sum() == 16


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda hu: hu.__setitem__((6, 12, 12), np.nan), "non-finite"),
        (lambda hu: hu.__setitem__(..., 100.0), "all voxels"),
        (lambda hu: hu.__setitem__((slice(4, 8), slice(4, 12), slice(4, 12)), 3071.0), "outside"),
        (lambda hu: hu.__setitem__((slice(4, 8), slice(4, 12), slice(4, 12)), -900.0), "outside"),
    ],
    ids=["not a number", "flat", "metal", "air"],
)
def test_input_that_the_library_would_answer_silently_gets_a_reason_and_no_values(spoil, said: str) -> None:
    volume = noise_volume()
    spoil(volume.hu)
    found = extract_features(volume, box_voi((12, 24, 24)))
    assert found.values == () and found.reason is not None
    assert found.reason.code == "RADIOMICS_INPUT" and said in found.reason.text


def test_a_tiny_voi_gets_a_reason() -> None:
    weights = np.zeros((12, 24, 24), np.float32)
    weights[4:8, 8:14, 8:14] = 1
    found = extract_features(noise_volume(), box_voi((12, 24, 24), weights))
    assert found.reason is not None and "voxels" in found.reason.text


def test_a_single_slice_gets_a_reason() -> None:
    weights = np.zeros((5, 60, 60), np.float32)
    weights[2] = 1
    volume = noise_volume((5, 60, 60))
    found = extract_features(volume, box_voi((5, 60, 60), weights))
    assert found.reason is not None and "1 slice in the VOI" in found.reason.text


def test_two_percent_of_stray_voxels_are_left_out_and_no_more() -> None:
    volume = noise_volume()
    volume.hu[0, 0, :24] = 2000.0  # 24 of 6912 voxels
    found = extract_features(volume, box_voi((12, 24, 24)))
    assert found.reason is None
    assert dict(zip(found.names, found.values, strict=True))["firstorder_Maximum"] <= 800


def test_anchored_edges_stand_still_when_one_voxel_is_lower_and_the_library_s_edges_do_not() -> None:
    (volume, voi), name = marrow()[0], "glszm_LargeAreaHighGrayLevelEmphasis"
    hu, mask = resample_voi(volume, voi, 1.0)
    lower = hu.copy()
    lower[tuple(np.argwhere(mask)[len(np.argwhere(mask)) // 2])] = hu[mask].min() - 100
    change = {}
    for contract in (ExtractionContract(), PAPER_CONTRACT):
        before, after = (compute_features(one, mask, contract, [name])[0] for one in (hu, lower))
        change[contract.bin_anchor_hu] = abs(after / before - 1)
    assert change[-1000.0] < 0.02 < 0.5 < change[None]


def test_the_contract_s_hash_tells_one_extraction_from_another() -> None:
    contracts = (ExtractionContract(), PAPER_CONTRACT, ExtractionContract(grid_mm=2.0), ExtractionContract(engine="x"))
    assert len({contract.sha256 for contract in contracts}) == 4
    assert contract_for("anchored") == ExtractionContract() and contract_for("library") == PAPER_CONTRACT


def test_thick_slices_still_give_93_finite_values() -> None:
    """Slices of 4 to 5 mm are a matter for the model's gate, not for the extraction."""
    rng = np.random.default_rng(4)
    hu = rng.normal(110, 25, (5, 48, 48)).astype(np.float32)
    weights = np.zeros(hu.shape, np.float32)
    weights[1:3, 12:36, 6:42] = 1
    weights[3, 12:36, 6:42] = 0.2
    volume = CtVolume(hu, axial_affine((5.0, 0.8, 0.8), (0.0, 0.0, 0.0)))
    found = extract_features(volume, box_voi(hu.shape, weights))
    assert found.reason is None and len(found.values) == 93 and np.isfinite(found.values).all()
