"""Phantom scans for tests: simulated volumes whose truth is known, and calibrations made of rods without any image."""

from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np

from analysis.calibration import build_calibration
from analysis.calibration_state import CalibrationSeries
from analysis.phantom_types import phantom_spec
from analysis.results import (
    Calibration,
    PhantomMeasurement,
    PhantomSetup,
    PhantomSpec,
    RodMeasurement,
    SeriesHeader,
)
from analysis.simulation.phantom_scan import Acquisition, Defects, PadGeometry, PhantomScanSpec, Pose

MODEL_3 = phantom_spec("4541A", "Mindways Model 3 CT")
SIGMA_REF, BETA_REF = 1.5464, -999.6  # 120 kVp behind 30 cm of water
MONDAY = datetime(2026, 3, 2, 7, 0, tzinfo=UTC)
# HU of rods A to E of unit 4541A and the line through them, from the tests of the open code Bonelab/Ogo
GOLDEN_HU = (-69.54917011727602, -35.378190313384316, 176.71197512467555, 345.73809215407005, 462.93637565619906)
GOLDEN = {"sigma_ref": 1.46695849554, "beta_ref": -1009.75004687, "sigma_ct": 1.24955849554, "beta_ct": -10.1500468666}

SMALL = Acquisition(slices=12, spacing_mm=2.5, matrix=320, fov_mm=400.0, noise_hu=10.0)


def scan(**parts: object) -> PhantomScanSpec:
    """A small scan (12 slices, 320 x 320) of unit 4541A; `parts` replace those of `PhantomScanSpec`."""
    return replace(PhantomScanSpec(MODEL_3, acquisition=SMALL), **parts)  # type: ignore[arg-type]


__all__ = ["Defects", "PadGeometry", "Pose"]


def header(week: float = 0.0, **changes: object) -> SeriesHeader:
    """The header of a scan `week` weeks after a Monday."""
    plain = SeriesHeader(
        series_instance_uid=f"1.2.826.0.1.3680043.10.1.{round(week * 10000) + 100000}",
        study_instance_uid="1.2.826.0.1.3680043.10.2",
        frame_of_reference_uid=None,
        acquired=MONDAY + timedelta(weeks=week),
        manufacturer="GE MEDICAL SYSTEMS",
        manufacturer_model_name="Revolution CT",
        device_serial_number="CT1",
        station_name="CT1",
        software_versions="1.0",
        date_of_last_calibration=None,
        kvp=120.0,
        tube_current_ma=(200.0, 200.0),
        exposure_modulation_type=None,
        filter_type="BODY FILTER",
        data_collection_diameter_mm=500.0,
        reconstruction_diameter_mm=500.0,
        convolution_kernel="STANDARD",
        slice_thickness_mm=1.25,
        spacing_between_slices_mm=1.25,
        pixel_spacing_mm=(0.98, 0.98),
        table_height_mm=150.0,
        spiral_pitch_factor=0.98,
        gantry_detector_tilt_deg=0.0,
        patient_position="HFS",
        image_type=("ORIGINAL", "PRIMARY", "AXIAL"),
        contrast_bolus_agent=None,
        lossy=False,
        rows=512,
        columns=512,
        n_slices=40,
    )
    return replace(plain, **changes)  # type: ignore[arg-type]


def rods_hu(sigma_ref: float = SIGMA_REF, beta_ref: float = BETA_REF, spec: PhantomSpec = MODEL_3) -> tuple[float, ...]:
    return tuple((rod.water_mg_cm3 or 0.0) + sigma_ref * rod.density_mg_cm3 + beta_ref for rod in spec.rods)


# Fixed differences of this unit from its certificate: a fit without any residual would be a miracle
ROD_ERRORS_HU = (2.0, -2.5, -1.5, 3.0, -1.0)


def measurement(
    hu: Iterable[float], setup: PhantomSetup = PhantomSetup.TORSO, diameter_mm: float = 270.0
) -> PhantomMeasurement:
    """Rods of these HU, measured well."""
    rods = tuple(
        RodMeasurement(rod.name, value, 12.0, 4000, (30.0 * i, 100.0, -300.0), 0.001, 0.2, 0.005)
        for i, (rod, value) in enumerate(zip(MODEL_3.rods, hu, strict=True))
    )
    return PhantomMeasurement(MODEL_3.serial, rods, setup, 0.5, diameter_mm, 12.0)


def calibration(
    week: float = 0.0, sigma_ref: float = SIGMA_REF, beta_ref: float = BETA_REF, **changes: object
) -> Calibration:
    """A good calibration of a line that the test chooses; `changes` go to the header."""
    setup = changes.pop("setup", PhantomSetup.TORSO)
    diameter = changes.pop("diameter_mm", 270.0)
    errors = changes.pop("rod_errors_hu", ROD_ERRORS_HU)
    hu = np.array(rods_hu(sigma_ref, beta_ref)) + np.array(errors)
    return build_calibration(header(week, **changes), MODEL_3, measurement(hu, setup, diameter))  # type: ignore[arg-type]


def quiet_weeks(n: int, seed: int = 1, first: float = 0.0, **changes: object) -> tuple[Calibration, ...]:
    """`n` weekly scans of a scanner in control: sigma 0.3 %, beta 0.6 HU from week to week."""
    rng = np.random.default_rng(seed)
    return tuple(
        calibration(first + i, SIGMA_REF * (1 + rng.normal(0, 0.003)), BETA_REF + rng.normal(0, 0.6), **changes)
        for i in range(n)
    )


def in_service(*scans: Calibration, **changes: object) -> CalibrationSeries:
    """A series of these scans that the site declared commissioned."""
    return replace(CalibrationSeries(scans[0].key, tuple(scans), declarations=(scans[0].acquired,)), **changes)  # type: ignore[arg-type]
