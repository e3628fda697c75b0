"""`qct-node analyse` on simulated patients with findings: each must come back with its code in report.json.

Everything is real: DICOM series, phantom scan, the shipped networks. One scan may hold several findings, since a
refusal names the reason of each level. Nothing is asserted about densities or outlines, which change with the weights.
"""

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydicom import dcmread

from analysis import chain
from analysis.classification import DEMONSTRATION_MODEL
from analysis.classification_model import AcquisitionDomain, LogisticClassifier, load_model, model_text
from analysis.results import Calibration, Segmentation
from analysis.simulation.phantom_scan import WATER_MG_CM3, Acquisition, PhantomScanSpec, simulate_phantom
from analysis.simulation.physics import Phase
from analysis.simulation.spine_curve import Fracture, FractureKind, Variant
from analysis.volume import CtVolume
from node import offline
from node.config import Config
from storage.ct_series import CtSeries
from tests.analyse_builders import Patient, analyse, ball, daily_phantom, densities, write_patient
from tests.phantom_builders import MODEL_3
from tests.synthetic import ACQUIRED, write_ct

SHORT = {"first": "L1", "last": "L3"}  # enough for what is judged before the names of the levels


def patient(**parts: Any) -> Callable[[Path], None]:
    return lambda folder: write_patient(Patient(**parts), folder)


def off_scale(folder: Path) -> None:
    """A scanner whose water reads +60 HU: said by RescaleIntercept, as a wrong export would."""
    write_patient(Patient(**SHORT), folder, lambda _, ds: setattr(ds, "RescaleIntercept", "-964"))


def phantom_as_patient(folder: Path) -> None:
    volume = simulate_phantom(PhantomScanSpec(MODEL_3, acquisition=Acquisition(slices=24, matrix=256, spacing_mm=3.0)))
    write_ct(folder, volume.volume)


def unlucky_header(_: int, ds: Any) -> None:
    """A person of 15 years, on a scanner that was serviced after the phantom scan and states no filter."""
    ds.PatientBirthDate, ds.DateOfLastCalibration = f"{ACQUIRED.year - 15}0101", "20260302"
    del ds.FilterType


# Three levels that may be measured, three findings: cement in L1, a lytic lesion in L2, a wedge fracture of L3.
THREE_FINDINGS = patient(
    paint=lambda p: [paint(p) for paint in (ball("L1", 900.0, 8.0), ball("L2", -40.0, 11.0))],
    fractures=(Fracture("L3", FractureKind.WEDGE, 0.45),),
)
# L1 cut by the first slice, a pin in L2, and in L3 a patch of other bone in a quarter of the VOI
CUT_METAL_PATCH = patient(
    marrow=densities(3.0, 1.0, L1=100.0, L2=100.0, L3=100.0),
    noise_sd_hu=4.0,
    margin_mm=-4.0,
    paint=lambda p: [paint(p) for paint in (ball("L2", 3000.0, 3.0, 4.0), ball("L3", 35.0, 6.4, 4.0))],
)
HEALTHY = patient()
UNEQUAL = patient(marrow=densities(L1=330.0, L2=100.0, L3=150.0))


@dataclass(frozen=True, slots=True)
class Case:
    """A scan, changes of the configuration, and the codes that must be among the reasons (refused) or flags.

    texture : the codes of the texture model, which the configuration names; it never refuses a density
    """

    write: Callable[[Path], None]
    reasons: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    config: dict[str, Any] = field(default_factory=dict)
    texture: tuple[str, ...] = ()


# trained on slabs of 9 mm in L1 and L2 of simulated spines, in slices of 1.25 mm
DEMONSTRATION: dict[str, Any] = {"radiomics": {"model_file": str(DEMONSTRATION_MODEL)}}
# otherwise the last level would not even be tried
ONE_IS_ENOUGH: dict[str, Any] = {"bmd": {"minimum_vertebrae": 1}}
CASES: dict[str, Case] = {
    "cement, lesion, fracture": Case(
        THREE_FINDINGS, ("CEMENT", "LESION", "FRACTURE", "NO_USABLE_VERTEBRA"), (), ONE_IS_ENOUGH
    ),
    "cut, metal, patch": Case(
        CUT_METAL_PATCH,
        ("VERTEBRA_CUT", "METAL", "VOI_EXCLUSIONS", "NO_USABLE_VERTEBRA"),
        (),
        {**ONE_IS_ENOUGH, "voi": {"max_excluded_fraction": 0.1}},
    ),
    "sclerosis, then unequal levels": Case(UNEQUAL, ("SCLEROSIS", "LEVELS_DISAGREE")),
    "unequal levels, allowed": Case(
        UNEQUAL, (), ("LEVELS_DIFFER", "FALLBACK_LEVEL"), {"bmd": {"refuse_difference_mg_cm3": 100}}
    ),
    "one level left": Case(UNEQUAL, ("SCLEROSIS", "TOO_FEW_VERTEBRAE"), (), {"bmd": {"fallback_levels": []}}),
    "one level left, allowed, in a slab too thin for texture": Case(
        UNEQUAL,
        (),
        ("SINGLE_VERTEBRA",),
        {"bmd": {"fallback_levels": [], "minimum_vertebrae": 1}, "voi": {"depth_mm": 2}, **DEMONSTRATION},
        ("RADIOMICS_LEVELS", "RADIOMICS_INPUT", "RADIOMICS_ACQUISITION"),
    ),
    "thick slices and a thin slab, neither known to the texture model": Case(
        HEALTHY, (), (), {"voi": {"depth_mm": 4}, **DEMONSTRATION}, ("RADIOMICS_ACQUISITION", "RADIOMICS_DOMAIN")
    ),
    "no landmark": Case(patient(**SHORT), ("LEVEL_UNCERTAIN",)),
    "six lumbar vertebrae": Case(
        patient(first="T12", variant=Variant.SIX_LUMBAR), ("LEVEL_UNCERTAIN",), ("TRANSITIONAL_ANATOMY",)
    ),
    "contrast without a tag": Case(patient(**SHORT, phase=Phase.PORTAL), ("CONTRAST_IMAGE",)),
    "scale off by 60 HU": Case(off_scale, ("HU_SCALE",)),
    "narrow field of view": Case(patient(**SHORT, columns=104), ("BODY_TRUNCATED",)),
    "phantom labelled as patient": Case(phantom_as_patient, ("NO_SPINE", "PHANTOM_AS_PATIENT")),
    "margins that no vertebra allows": Case(HEALTHY, ("VOI_MARGIN",), (), {"voi": {"margin_mm": 9}}),
    "a section that no oval fills": Case(HEALTHY, ("VOI_COVERAGE",), (), {"voi": {"min_fraction": 0.72}}),
    "a section filled less than usual": Case(HEALTHY, (), ("VOI_SMALL",), {"voi": {"usual_fraction": 0.72}}),
    "bone outside the configured range": Case(HEALTHY, ("VOI_HU_RANGE",), (), {"bmd": {"voi_mean_hu": [-50, 40]}}),
}


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return daily_phantom(tmp_path_factory.mktemp("phantom"))


@pytest.fixture(scope="module")
def known() -> dict[Any, Any]:
    """What has been written, measured and segmented in this module."""
    return {}


@pytest.fixture(autouse=True)
def same_images_once(monkeypatch: pytest.MonkeyPatch, known: dict[Any, Any]) -> None:
    """The same phantom scan is measured once, the same images are segmented once for all tests."""
    measure, segment = offline._measure_phantom_folder, chain.segment_with

    def remember_phantom(folder: Path, config: Config) -> tuple[Calibration, CtSeries]:
        if folder not in known:
            known[folder] = measure(folder, config)
        return known[folder]  # type: ignore[no-any-return]

    def remember_segmentation(backend: str, volume: CtVolume, *rest: Any) -> Segmentation:
        key = hashlib.sha256(volume.hu.tobytes()).hexdigest()
        if key not in known:
            known[key] = segment(backend, volume, *rest)
        return known[key]  # type: ignore[no-any-return]

    monkeypatch.setattr(offline, "_measure_phantom_folder", remember_phantom)
    monkeypatch.setattr(chain, "segment_with", remember_segmentation)


@pytest.fixture
def series(known: dict[Any, Any], tmp_path_factory: pytest.TempPathFactory) -> Callable[[Any], Path]:
    """The folder of a written scan; each is simulated once."""

    def written(write: Callable[[Path], None]) -> Path:
        if write not in known:
            known[write] = tmp_path_factory.mktemp("patient")
            write(known[write])
        return known[write]  # type: ignore[no-any-return]

    return written


def codes(found: list[dict[str, str]]) -> set[str]:
    return {one["code"] for one in found}


def texture_codes(report: dict[str, Any]) -> set[str]:
    model = report["radiomics_model"]
    return codes(model["reasons"]) if model else set()


def sure_of_osteoporosis(path: Path) -> dict[str, Any]:
    """The configuration of a texture model that knows every scan and finds osteoporosis in each."""
    model = load_model(DEMONSTRATION_MODEL)
    n = len(model.domain.names)
    everywhere = replace(model.domain, low=(-1e12,) * n, high=(1e12,) * n, max_distance2=1e12, voxels=(0.0, 1e12))
    blind = LogisticClassifier(((0.0,) * len(model.features),) * 3, (50.0, 0.0, 0.0))
    changed = replace(model, acquisition=AcquisitionDomain(), domain=everywhere, kind="logistic", classifier=blind)
    path.write_text(model_text(changed))
    return {"radiomics": {"model_file": str(path)}}


@pytest.mark.parametrize("name", CASES)
def test_what_is_wrong_with_a_patient_comes_back_by_its_code(
    name: str, phantom: Path, series: Callable[[Any], Path], tmp_path: Path
) -> None:
    case = CASES[name]
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(case.config))
    exit_code, report = analyse(series(case.write), [phantom], tmp_path / "out", config)
    expected = (3, "refused") if case.reasons else (0, "reported")
    assert (exit_code, report["status"]) == expected, report["reasons"]
    assert set(case.reasons) <= codes(report["reasons"]), report["reasons"]
    flags = [*report["flags"], *(flag for vertebra in report["vertebrae"] for flag in vertebra["flags"])]
    assert set(case.flags) <= codes(flags), flags
    assert set(case.texture) <= texture_codes(report), report["radiomics_model"]
    assert bool(report["vertebrae"]) is not bool(case.reasons)


FLAGGED = (
    "CALIBRATION_MATERIAL",
    "CALIBRATION_AGED",
    "CALIBRATION_SINCE_SERVICE",
    "CALIBRATION_SOFT_DIFFERENCE",
    "CALIBRATION_UNKNOWN_SOFT",
    "BODY_SIZE",
    "INTERNAL_CHECK_DIFFERS",
    "REFERENCE_UNKNOWN",
)


def test_what_only_weakens_a_result_is_flagged_by_its_code(series: Callable[[Any], Path], tmp_path: Path) -> None:
    """All at once: a small child-aged body, limits of another material, and a phantom scan of nine days before, with
    other water, before the scanner's service."""
    spec = PhantomScanSpec(MODEL_3, beta_ref=-27.0 - WATER_MG_CM3, acquisition=Acquisition(slices=16))
    write_ct(
        tmp_path / "phantom",
        simulate_phantom(spec).volume,
        lambda _, ds: setattr(ds, "DateOfLastCalibration", "20260101"),
        acquired=ACQUIRED - timedelta(days=9),
        series_description="QCT PHANTOM 4541A",
    )
    folder = tmp_path / "patient"
    shutil.copytree(series(HEALTHY), folder)
    for path in folder.iterdir():
        ds = dcmread(path)
        unlucky_header(0, ds)
        ds.save_as(path)
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({"bmd": {"material": "HA"}} | sure_of_osteoporosis(tmp_path / "model.json")))
    exit_code, report = analyse(folder, [tmp_path / "phantom"], tmp_path / "out", config)
    assert exit_code == 0 and report["vertebrae"] and report["classification"] is None, report["reasons"]
    assert set(FLAGGED) <= codes(report["flags"]), report["flags"]
    assert texture_codes(report) == {"RADIOMICS_UNDECIDED"}, "a class that no limits of this material can check"


def test_a_texture_that_contradicts_the_density_is_said_and_the_density_stands(
    phantom: Path, series: Callable[[Any], Path], tmp_path: Path
) -> None:
    """About 100 mg/cm3, and osteoporosis begins below 80."""
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(sure_of_osteoporosis(tmp_path / "model.json")))
    exit_code, report = analyse(series(HEALTHY), [phantom], tmp_path / "out", config)
    assert exit_code == 0 and report["vertebrae"] and report["classification"] != "osteoporosis"
    assert texture_codes(report) == {"RADIOMICS_CONTRADICTION"}
    assert report["radiomics_model"]["classification"] is None


TEXTURE = ("RADIOMICS_UNDECIDED", "RADIOMICS_CONTRADICTION")


def test_a_scale_that_is_off_may_be_reported_with_a_warning_where_the_site_says_so(
    phantom: Path, series: Callable[[Any], Path], tmp_path: Path
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({"tissues": {"outside": "warn"}, "protocol": {"contrast": "warn"}}))
    _, report = analyse(series(off_scale), [phantom], tmp_path / "out", config)
    assert "HU_SCALE" in codes(report["flags"]) and "HU_SCALE" not in codes(report["reasons"])
