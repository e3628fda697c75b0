"""A small simulated patient with true masks: T12 to L3, near the spine only, about one second to build."""

from dataclasses import replace
from functools import cache

from analysis.results import Segmentation, SeriesHeader, VertebraLevel
from analysis.simulation.marrow import MarrowSpec
from analysis.simulation.patient import PatientSpec, SimulatedPatient, simulate_patient
from analysis.simulation.physics import TissueSpec
from analysis.simulation.scanner import AcquisitionSpec
from analysis.simulation.spine_curve import Fracture
from analysis.simulation.torso import TorsoSpec
from tests.synthetic import ACQUIRED

TRUE_LINE = (1.33, 0.4)  # HU per mg/cm3, HU


@cache
def small_patient(
    bmd_mg_cm3: float = 100.0,
    fractures: tuple[Fracture, ...] = (),
    noise_sd_hu: float = 12.0,
    interval_mm: float = 1.25,
) -> SimulatedPatient:
    marrow = MarrowSpec(density_mg_cm3=bmd_mg_cm3, densities_mg_cm3=(("L1", bmd_mg_cm3), ("L2", bmd_mg_cm3)))
    torso = TorsoSpec(first="T12", last="L3", spine_only=True, marrow=marrow, seed=7)
    torso = replace(torso, spine=replace(torso.spine, fractures=fractures))
    tissue = TissueSpec(sigma_hu_per_mg=TRUE_LINE[0], beta_hu=TRUE_LINE[1], seed=7)
    scanner = AcquisitionSpec(
        rows=256,
        columns=256,
        pixel_spacing_mm=0.9765625,
        slice_interval_mm=interval_mm,
        slice_thickness_mm=interval_mm,
        noise_sd_hu=noise_sd_hu,
        seed=7,
    )
    return simulate_patient(PatientSpec(torso, tissue, scanner, model_spacing_mm=1.0))


def true_segmentation(patient: SimulatedPatient, confidence: float = 0.99) -> Segmentation:
    levels = tuple(VertebraLevel(v.name, v.label, confidence, v.centroid_lps_mm, v.complete) for v in patient.truth)
    return Segmentation(patient.labels, patient.body, levels, ("sacrum", "last rib"), ())


def header(**changes: object) -> SeriesHeader:
    """A scan exactly as the reference protocol says."""
    base = SeriesHeader(
        series_instance_uid="1.2.3", study_instance_uid="1.2", frame_of_reference_uid="1.2.4", acquired=ACQUIRED,
        manufacturer="SIMULATED", manufacturer_model_name="CT-1", device_serial_number="SIM-0001", station_name="CT",
        software_versions="1.0", date_of_last_calibration=None, kvp=120.0, tube_current_ma=(80.0, 300.0),
        exposure_modulation_type="XYZ", filter_type="BODY FILTER", data_collection_diameter_mm=500.0,
        reconstruction_diameter_mm=500.0, convolution_kernel="STANDARD", slice_thickness_mm=1.25,
        spacing_between_slices_mm=1.25, pixel_spacing_mm=(0.9765625, 0.9765625), table_height_mm=150.0,
        spiral_pitch_factor=0.98, gantry_detector_tilt_deg=0.0, patient_position="HFS",
        image_type=("ORIGINAL", "PRIMARY", "AXIAL"), contrast_bolus_agent=None, lossy=False, rows=512, columns=512,
        n_slices=120, patient_sex="F", patient_age_years=61.0,
    )  # fmt: skip
    return replace(base, **changes)  # type: ignore[arg-type]
