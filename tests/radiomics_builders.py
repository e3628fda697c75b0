"""Simulated marrow, a small table of its features, models trained on it, and the scan and density around it."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from analysis.classification_model import ClassificationModel
from analysis.extraction_contract import ExtractionContract
from analysis.feature_names import FEATURE_NAMES
from analysis.feature_selection import SelectionPlan
from analysis.radiomic_features import extract_features
from analysis.results import BmdSummary, Classification, Material, SeriesHeader, VertebraFeatures, Voi
from analysis.training.radiomics import TrainedModel, TrainingPlan, train
from analysis.training.radiomics_cohort import draw_spine, scan_vertebra
from analysis.training.radiomics_export import ModelIdentity, export_model
from analysis.training.radiomics_table import Acquisition, Cohort, make_cohort, read_features
from analysis.volume import CtVolume, axial_affine

#: Features of 120 simulated spines, written by `python -m tests.studies.radiomics_study --table`.
TABLE = Path(__file__).parent / "golden" / "simulated_features.csv"
LIMITS = (80.0, 120.0)
QUICK = TrainingPlan(
    SelectionPlan("seed"), outer_folds=5, repeats=1, inner_folds=0, bootstraps=0, min_patients_per_class=20,
    conformal_level=0.8,  # 11 calibration patients per class are enough for it
)  # fmt: skip


@cache
def tabled_cohort() -> Cohort:
    return make_cohort(read_features(TABLE, LIMITS))


@cache
def trained(signature: str = "seed", classifier: str = "logistic") -> TrainedModel:
    plan = replace(QUICK, selection=SelectionPlan(signature, classifier, n_trees=20))  # type: ignore[arg-type]
    return train(tabled_cohort(), plan)


@cache
def trained_model(signature: str = "seed", classifier: str = "logistic") -> ClassificationModel:
    identity = ModelIdentity("test model", "simulated table", "2026-03-02T10:00:00+00:00", demonstration=True)
    return export_model(trained(signature, classifier), tabled_cohort(), ExtractionContract(), identity)


@cache
def marrow(seed: int = 500) -> tuple[tuple[CtVolume, Voi], tuple[CtVolume, Voi]]:
    """The blocks around L1 and L2 of a simulated spine that is not in the table."""
    spine = draw_spine(seed)
    return scan_vertebra(spine, 0), scan_vertebra(spine, 1)


def features_of(seed: int = 500) -> tuple[VertebraFeatures, ...]:
    return tuple(extract_features(volume, voi) for volume, voi in marrow(seed))


def row_features(row: int) -> tuple[VertebraFeatures, ...]:
    """One study of the table, as the extraction gives it."""
    cohort, sha256 = tabled_cohort(), ExtractionContract().sha256
    return tuple(
        VertebraFeatures(level, FEATURE_NAMES, tuple(map(float, values)), sha256, int(n))
        for level, values, n in zip(cohort.levels, cohort.vertebrae[row], cohort.n_voxels[row], strict=True)
    )


def box_voi(shape: tuple[int, int, int], weights: NDArray[np.float32] | None = None) -> Voi:
    """A VOI over a whole small volume."""
    filled = np.ones(shape, np.float32) if weights is None else weights
    return Voi("L1", filled, (0, 0, 0), (0, 0, 0), (0, 0, 1), (10, 8), 9.0, 0.65, 4000.0, 0.0, "test")


def noise_volume(shape: tuple[int, int, int] = (12, 24, 24), seed: int = 3) -> CtVolume:
    hu = np.random.default_rng(seed).normal(120, 30, shape).astype(np.float32)
    return CtVolume(hu, axial_affine((1.0, 1.0, 1.0), (0.0, 0.0, 0.0)))


def header_of(acquisition: Acquisition | None = None, **changes: object) -> SeriesHeader:
    """A scan like those of the table."""
    made = acquisition or tabled_cohort().acquisitions[0]
    pixel = made.pixel_spacing_mm or 0.9
    header = SeriesHeader(
        series_instance_uid="1.2.3.1", study_instance_uid="1.2.3", frame_of_reference_uid=None, acquired=None,
        manufacturer=made.manufacturer, manufacturer_model_name="CT-1", device_serial_number="SIM-0001",
        station_name=None, software_versions=None, date_of_last_calibration=None, kvp=made.kvp, tube_current_ma=None,
        exposure_modulation_type=None, filter_type=None, data_collection_diameter_mm=None,
        reconstruction_diameter_mm=None, convolution_kernel=made.kernel, slice_thickness_mm=made.slice_thickness_mm,
        spacing_between_slices_mm=made.spacing_between_slices_mm or 1.25, pixel_spacing_mm=(pixel, pixel),
        table_height_mm=None, spiral_pitch_factor=None, gantry_detector_tilt_deg=None, patient_position="HFS",
        image_type=("ORIGINAL", "PRIMARY", "AXIAL"), contrast_bolus_agent=None, lossy=False, rows=512, columns=512,
        n_slices=100,
    )  # fmt: skip
    return replace(header, **changes)  # type: ignore[arg-type]


def density(bmd_mg_cm3: float, **changes: object) -> BmdSummary:
    """A measured density with its class."""
    low, high = LIMITS
    known = (
        Classification.OSTEOPOROSIS if bmd_mg_cm3 < low
        else Classification.OSTEOPENIA if bmd_mg_cm3 <= high else Classification.NORMAL
    )  # fmt: skip
    summary = BmdSummary(
        ("L1", "L2"), bmd_mg_cm3, 3.0, Material.K2HPO4, known, LIMITS, False, (), None, None, None
    )
    return replace(summary, **changes)  # type: ignore[arg-type]
