"""The frozen values that travel between steps, into storage and into DICOM. Units are in the names.

Densities carry their `Material`: K2HPO4- and hydroxyapatite-equivalent are different scales and are never mixed.
"""

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray


class Material(StrEnum):
    """The substance whose equivalent density a phantom's certificate states."""

    K2HPO4 = "K2HPO4"
    HA = "HA"


class Classification(StrEnum):
    OSTEOPOROSIS = "osteoporosis"
    OSTEOPENIA = "osteopenia"
    NORMAL = "normal"


class Severity(StrEnum):
    """Of a protocol finding or quality flag."""

    AS_PROTOCOL = "as protocol"
    TOLERATED = "tolerated"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Reason:
    """Why something was refused or flagged; `code` is a key of `analysis.refusals.REASONS`."""

    code: str
    text: str


@dataclass(frozen=True, slots=True)
class SeriesHeader:
    """What the analysis may know of a series' DICOM header. None = absent, which is unknown, never "equal"."""

    series_instance_uid: str
    study_instance_uid: str
    frame_of_reference_uid: str | None
    acquired: datetime | None  # timezone-aware UTC
    manufacturer: str | None
    manufacturer_model_name: str | None
    device_serial_number: str | None
    station_name: str | None
    software_versions: str | None
    date_of_last_calibration: str | None
    kvp: float | None
    tube_current_ma: tuple[float, float] | None  # minimum and maximum over the slices
    exposure_modulation_type: str | None
    filter_type: str | None
    data_collection_diameter_mm: float | None
    reconstruction_diameter_mm: float | None
    convolution_kernel: str | None
    slice_thickness_mm: float | None
    spacing_between_slices_mm: float  # from ImagePositionPatient
    pixel_spacing_mm: tuple[float, float]
    table_height_mm: float | None
    spiral_pitch_factor: float | None
    gantry_detector_tilt_deg: float | None
    patient_position: str | None
    image_type: tuple[str, ...]
    contrast_bolus_agent: str | None
    lossy: bool
    rows: int
    columns: int
    n_slices: int
    series_description: str = ""
    protocol_name: str = ""
    patient_sex: str | None = None  # "M", "F" or "O"
    patient_age_years: float | None = None  # at acquisition


# --- phantom and calibration ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RodSpec:
    """One insert as certified. `water_mg_cm3` is only known for two-density (Mindways) rods."""

    name: str
    density_mg_cm3: float
    water_mg_cm3: float | None = None


@dataclass(frozen=True, slots=True)
class PhantomSpec:
    """One phantom unit: certificate and geometry. Rods are listed in their order across the phantom."""

    serial: str
    phantom_type: str
    material: Material
    rods: tuple[RodSpec, ...]
    rod_diameter_mm: float
    rod_pitch_mm: float
    geometry_verified: bool = False  # False: drawing not public, geometry is a loose prior only
    valid_from: datetime | None = None


@dataclass(frozen=True, slots=True)
class RodMeasurement:
    name: str
    hu: float
    sd_hu: float
    n_voxels: int
    centre_lps_mm: tuple[float, float, float]
    axial_slope_hu_per_mm: float
    standard_error_hu: float  # with noise correlation taken into account
    axial_slope_se_hu_per_mm: float = 0.0


class PhantomSetup(StrEnum):
    ALONE = "alone"
    TORSO = "torso"
    UNDER_PATIENT = "under patient"


@dataclass(frozen=True, slots=True)
class PhantomMeasurement:
    phantom_serial: str
    rods: tuple[RodMeasurement, ...]
    setup: PhantomSetup
    tilt_deg: float
    water_equivalent_diameter_mm: float
    assignment_ratio: float  # SEE of the best wrong assignment / SEE of the chosen one
    findings: tuple[Reason, ...] = ()


@dataclass(frozen=True, slots=True)
class Gate:
    """One acceptance check with its number, its limits and its verdict."""

    name: str
    value: float
    low: float | None
    high: float | None
    passed: bool


@dataclass(frozen=True, slots=True)
class CalibrationKey:
    """What must be equal between a phantom scan and a patient scan. See qct literature: kVp and device are hard."""

    manufacturer: str
    manufacturer_model_name: str
    device_serial_number: str
    software_epoch: str
    kvp: float
    filter_type: str
    convolution_kernel: str
    phantom_serial: str
    setup: PhantomSetup


@dataclass(frozen=True, slots=True)
class CalibrationLine:
    """HU = sigma_ct * density + beta_ct, with the covariance of (sigma, beta) and the fit's degrees of freedom."""

    material: Material
    sigma_ref: float  # HA phantoms: equal to sigma_ct
    beta_ref: float
    sigma_ct: float  # HU per mg/cm3
    beta_ct: float  # HU
    covariance: tuple[tuple[float, float], tuple[float, float]]
    r2: float
    see_hu: float
    residuals_hu: tuple[float, ...]
    degrees_of_freedom: int

    def to_bmd_mg_cm3(self, hu: float) -> float:
        return (hu - self.beta_ct) / self.sigma_ct


@dataclass(frozen=True, slots=True)
class Calibration:
    """One phantom scan's line with its verdict. `accepted` False with `reasons` is a stored result, no error."""

    id: str  # SOP-independent: derived from the series UID and software version
    series_instance_uid: str
    phantom_serial: str
    phantom_type: str
    key: CalibrationKey
    acquired: datetime
    line: CalibrationLine
    measurement: PhantomMeasurement
    gates: tuple[Gate, ...]
    accepted: bool
    reasons: tuple[Reason, ...]
    software_version: str
    header: SeriesHeader | None = None  # of the phantom scan, for the soft differences


@dataclass(frozen=True, slots=True)
class UncertaintyTerm:
    """One named standard uncertainty, mg/cm3. `shared` terms are common to all vertebrae of a study."""

    name: str
    u_mg_cm3: float
    shared: bool


@dataclass(frozen=True, slots=True)
class ChosenCalibration:
    """The line that a patient scan may use, where it comes from, and what it costs in uncertainty."""

    calibration: Calibration  # the nearest accepted scan before (or the earlier of the bracket)
    line: CalibrationLine  # the line to use, interpolated when bracketed
    age_days: float
    state: str  # "normal" | "degraded" | "commissioned for this run"
    provisional: bool  # False once the next accepted scan brackets the patient scan
    bracketing_id: str | None
    interpolation_weight: float  # weight of the later scan, 0 when not bracketed
    setup_diameters: tuple[
        tuple[float, CalibrationLine], ...
    ] = ()  # (water-equivalent diameter mm, line) of other set-ups
    terms: tuple[UncertaintyTerm, ...] = ()  # soft differences and age, added to the budget
    flags: tuple[Reason, ...] = ()


# --- patient --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ProtocolFinding:
    """One attribute of the scan against the reference protocol."""

    attribute: str
    found: str
    expected: str
    severity: Severity
    u_mg_cm3: float = 0.0
    reason: Reason | None = None  # set when refused


@dataclass(frozen=True, slots=True)
class VertebraLevel:
    """One vertebra found. `label` follows VerSe: T1 = 8 ... T12 = 19, L1 = 20 ... L5 = 24, sacrum 26."""

    name: str
    label: int
    confidence: float  # probability of this level from the whole chain, 0..1
    centroid_lps_mm: tuple[float, float, float]  # of the vertebral body
    complete: bool  # False: cut by the edge of the volume


@dataclass(frozen=True, slots=True, eq=False)
class Segmentation:
    """labels: uint8 VerSe numbering, body: uint8 0 none, 1 posterior elements, 2 body cortex, 3 body cancellous bone.

    Both are (slices, rows, columns) on the grid of the CtVolume.
    """

    labels: NDArray[np.uint8]
    body: NDArray[np.uint8]
    levels: tuple[VertebraLevel, ...]  # from head to feet
    level_anchors: tuple[str, ...]  # for example ("sacrum", "last rib")
    flags: tuple[Reason, ...]  # LEVEL_UNCERTAIN, TRANSITIONAL_ANATOMY, ...
    timings_s: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Voi:
    """The trabecular VOI of one vertebra: partial-volume weights in a box of the volume's grid.

    weights : float32, 0..1, on the box that starts at `start` (slice, row, column)
    """

    level: str
    weights: NDArray[np.float32]
    start: tuple[int, int, int]
    centre_lps_mm: tuple[float, float, float]
    normal_lps: tuple[float, float, float]  # unit vector along the vertebra's axis, towards the head
    semi_axes_mm: tuple[float, float]  # lateral, antero-posterior
    depth_mm: float
    cancellous_fraction: float  # of the mid cancellous section that the oval covers
    volume_mm3: float
    excluded_fraction: float  # bone islands, vein, vacuum
    rule_version: str
    outlines_lps_mm: tuple[
        tuple[tuple[float, float, float], ...], ...
    ] = ()  # closed polyline on the middle source slice
    flags: tuple[Reason, ...] = ()  # VOI_SMALL


@dataclass(frozen=True, slots=True)
class VertebraBmd:
    level: str
    bmd_mg_cm3: float
    u_bmd_mg_cm3: float
    sd_bmd_mg_cm3: float
    mean_hu: float
    sd_hu: float
    n_voxels: float  # sum of the partial-volume weights
    voi_volume_mm3: float
    voi_depth_mm: float
    voi_cancellous_fraction: float
    voi_centre_lps_mm: tuple[float, float, float]
    terms: tuple[UncertaintyTerm, ...]
    level_confidence: float
    flags: tuple[Reason, ...] = ()
    voi_rule_version: str = ""


@dataclass(frozen=True, slots=True)
class RejectedVertebra:
    level: str
    reason: Reason


@dataclass(frozen=True, slots=True)
class Reference:
    """Where a BMD lies in a published population, with that population's source."""

    z_score: float
    percentile: float
    population: str
    source: str


@dataclass(frozen=True, slots=True)
class BmdSummary:
    """The mean of the two vertebrae. `levels` names them; only ("L1", "L2") may be called the L1-L2 mean."""

    levels: tuple[str, ...]
    bmd_mg_cm3: float
    u_bmd_mg_cm3: float
    material: Material
    classification: Classification | None  # None: limits are configured for another material
    limits_mg_cm3: tuple[float, float]
    borderline: bool
    terms: tuple[UncertaintyTerm, ...]
    reference: Reference | None
    internal_check_mg_cm3: float | None  # phantomless cross-check, never the reported value
    water_equivalent_diameter_mm: float | None
    rejected: tuple[RejectedVertebra, ...] = ()
    flags: tuple[Reason, ...] = ()
    voi_rule_version: str = ""  # of all its vertebrae; another rule is another method


@dataclass(frozen=True, slots=True)
class VertebraFeatures:
    """The 93 radiomic features of one VOI, in the fixed order of `analysis.radiomic_features.FEATURE_NAMES`."""

    level: str
    names: tuple[str, ...]
    values: tuple[float, ...]
    contract_sha256: str
    n_voxels: int
    reason: Reason | None = None  # set when the guards refused; values are then empty


@dataclass(frozen=True, slots=True)
class RadiomicsPrediction:
    state: str  # "OK" | "INDETERMINATE" | "NOT EVALUABLE"
    classification: Classification | None
    probabilities: tuple[tuple[str, float], ...]
    conformal_set: tuple[str, ...]
    conformal_level: float  # share of each class's patients whose set holds their class
    model_name: str
    model_sha256: str
    demonstration: bool  # True: trained on simulated spines, never a finding
    reasons: tuple[Reason, ...] = ()


@dataclass(frozen=True, slots=True)
class LongitudinalChange:
    """Against an earlier result on the same scanner key; a statement only when `significant`."""

    earlier_acquired: datetime
    earlier_bmd_mg_cm3: float
    change_mg_cm3: float
    least_significant_change_mg_cm3: float
    significant: bool


@dataclass(frozen=True, slots=True)
class ModelUsed:
    name: str
    version: str
    sha256: str


@dataclass(frozen=True, slots=True, eq=False)
class PatientResult:
    """Everything the node knows of one analysed patient series. status: "reported" | "refused"."""

    status: str
    reasons: tuple[Reason, ...]  # why refused; empty when reported
    header: SeriesHeader
    protocol: tuple[ProtocolFinding, ...]
    chosen: ChosenCalibration | None
    segmentation: Segmentation | None
    vois: tuple[Voi, ...]  # of the reported vertebrae, same order as `vertebrae`
    vertebrae: tuple[VertebraBmd, ...]
    summary: BmdSummary | None
    features: tuple[VertebraFeatures, ...]
    prediction: RadiomicsPrediction | None
    change: LongitudinalChange | None
    flags: tuple[Reason, ...]
    models: tuple[ModelUsed, ...]
    software_version: str
    timings_s: tuple[tuple[str, float], ...] = field(default=())
