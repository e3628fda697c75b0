"""Source headers and results of an imaginary study, small enough to encode in a moment.

Two ellipsoidal vertebral bodies lie along the slice axis, each with a VOI of half its size at its centre; the values
are those of a made-up patient. Geometry (order of slices, flips, tilt, matrix) is free.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.uid import CTImageStorage, generate_uid

from analysis.results import (
    BmdSummary,
    Calibration,
    CalibrationKey,
    CalibrationLine,
    ChosenCalibration,
    Classification,
    Gate,
    Material,
    ModelUsed,
    PatientResult,
    PhantomMeasurement,
    PhantomSetup,
    ProtocolFinding,
    Reason,
    RodMeasurement,
    Segmentation,
    SeriesHeader,
    Severity,
    UncertaintyTerm,
    VertebraBmd,
    VertebraFeatures,
    VertebraLevel,
    Voi,
)
from node import codes

CREATED = datetime(2026, 3, 2, 14, 30, tzinfo=UTC)
VERSE_LABELS = {"T11": 18, "T12": 19, "L1": 20, "L2": 21, "L3": 22, "L4": 23, "L5": 24}
AXIAL = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0))
#: Rows run backwards and columns too: the patient lies prone or feet first.
FLIPPED = ((-1.0, 0.0, 0.0), (0.0, -1.0, 0.0))
#: Rotated by 20 degrees about x and 10 degrees about z: no axis of the image is an axis of the patient.
OBLIQUE = ((0.984807753, 0.173648178, 0.0), (-0.163175911, 0.925416578, 0.342020143))


@dataclass(frozen=True, slots=True)
class Grid:
    """Geometry of a source series; `descending` stores the slices against their normal."""

    n_slices: int = 40
    rows: int = 64
    columns: int = 64
    spacing_mm: tuple[float, float, float] = (2.0, 1.5, 1.5)
    orientation: tuple[tuple[float, float, float], tuple[float, float, float]] = AXIAL
    origin_lps_mm: tuple[float, float, float] = (-48.0, -40.0, -300.0)
    descending: bool = False


def make_headers(grid: Grid = Grid(), name: str = "study") -> tuple[Dataset, ...]:
    """Headers of a CT series without pixels, in the order of the label maps' first axis."""
    order = range(grid.n_slices)
    headers = [_header(grid, index, name) for index in order]
    return tuple(reversed(headers)) if grid.descending else tuple(headers)


def affine_of(headers: Sequence[Dataset]) -> NDArray[np.float64]:
    """Index (slice, row, column, 1) -> LPS mm, from the headers alone."""
    row, column = np.split(np.asarray(headers[0].ImageOrientationPatient, dtype=float), 2)
    first, last = (np.asarray(headers[k].ImagePositionPatient, dtype=float) for k in (0, -1))
    affine = np.eye(4)
    affine[:3, 0] = (last - first) / max(len(headers) - 1, 1)
    affine[:3, 1] = column * float(headers[0].PixelSpacing[0])
    affine[:3, 2] = row * float(headers[0].PixelSpacing[1])
    affine[:3, 3] = first
    return affine


def make_result(headers: Sequence[Dataset], levels: tuple[str, ...] = ("L1", "L2"), **changes: object) -> PatientResult:
    """A reported result on the headers' grid; `changes` replace fields of it."""
    shape = (len(headers), int(headers[0].Rows), int(headers[0].Columns))
    affine = affine_of(headers)
    labels, body = (np.zeros(shape, dtype=np.uint8) for _ in range(2))
    centres = body_centres(shape, len(levels))
    if affine[2, 0] < 0:  # the first slice is the highest
        centres = [(shape[0] - 1 - slices, rows, columns) for slices, rows, columns in centres]
    for level, centre in zip(levels, centres, strict=True):
        _paint_vertebra(labels, body, centre, affine, VERSE_LABELS[level])
    vois = tuple(_voi(level, centre, shape, affine) for level, centre in zip(levels, centres, strict=True))
    found = tuple(VertebraLevel(v.level, VERSE_LABELS[v.level], 0.97, v.centre_lps_mm, True) for v in vois)
    result = PatientResult(
        status="reported", reasons=(), header=make_series_header(headers), protocol=PROTOCOL, chosen=CHOSEN,
        segmentation=Segmentation(labels, body, found, ("sacrum", "last rib"), ()), vois=vois,
        vertebrae=tuple(_vertebra(voi, 92.4 - 6.2 * i) for i, voi in enumerate(vois)), summary=make_summary(levels),
        features=tuple(make_features(level) for level in levels), prediction=None, change=None,
        flags=(Reason("LEVEL_UNCERTAIN", "level confidence 0.91; expected 0.95 or more"),),
        models=(ModelUsed("vbnet-spine", "1.0", "ab" * 32),), software_version="0.1.0",
    )
    return replace(result, **changes)  # type: ignore[arg-type]


def body_centres(shape: tuple[int, int, int], n_bodies: int) -> list[tuple[float, float, float]]:
    """Centres along the slice axis, off the middle of the matrix in all three directions so that flips show.

    The first is nearest the last slice: in an ascending axial series that is the upper vertebra.
    """
    return [
        (shape[0] * (n_bodies - index - 0.5) / n_bodies * 0.9, shape[1] * 0.56, shape[2] * 0.43)
        for index in range(n_bodies)
    ]


def make_summary(levels: tuple[str, ...] = ("L1", "L2"), **changes: object) -> BmdSummary:
    summary = BmdSummary(
        levels=levels, bmd_mg_cm3=89.3, u_bmd_mg_cm3=2.9, material=Material.K2HPO4,
        classification=Classification.OSTEOPENIA, limits_mg_cm3=(80.0, 120.0), borderline=False,
        terms=(UncertaintyTerm("calibration line", 1.8, True), UncertaintyTerm("body size", 2.2, True)),
        reference=None, internal_check_mg_cm3=91.0, water_equivalent_diameter_mm=296.0,
    )
    return replace(summary, **changes)  # type: ignore[arg-type]


def make_features(level: str) -> VertebraFeatures:
    names = tuple(codes.feature_codes())
    return VertebraFeatures(level, names, tuple(0.5 + 1.25 * k for k in range(len(names))), "cd" * 32, 2400)


def make_refusal(headers: Sequence[Dataset]) -> PatientResult:
    """A study that no calibration covers."""
    reason = Reason("CALIBRATION_EXPIRED", "last accepted phantom scan is 19.2 days old; at most 14 days are allowed")
    return make_result(
        headers, status="refused", reasons=(reason,), chosen=None, segmentation=None, vois=(), vertebrae=(),
        summary=None, features=(), flags=(),
    )


def make_series_header(headers: Sequence[Dataset]) -> SeriesHeader:
    ds = headers[0]
    return SeriesHeader(
        series_instance_uid=ds.SeriesInstanceUID, study_instance_uid=ds.StudyInstanceUID,
        frame_of_reference_uid=ds.get("FrameOfReferenceUID"), acquired=datetime(2026, 3, 2, 9, 12, tzinfo=UTC),
        manufacturer="GE MEDICAL SYSTEMS", manufacturer_model_name="Revolution", device_serial_number="CT1",
        station_name="CT1", software_versions="1", date_of_last_calibration=None, kvp=120.0,
        tube_current_ma=(80.0, 300.0), exposure_modulation_type=None, filter_type="BODY FILTER",
        data_collection_diameter_mm=500.0, reconstruction_diameter_mm=500.0, convolution_kernel="STANDARD",
        slice_thickness_mm=1.25, spacing_between_slices_mm=1.25, pixel_spacing_mm=(0.98, 0.98), table_height_mm=150.0,
        spiral_pitch_factor=0.98, gantry_detector_tilt_deg=0.0, patient_position="HFS",
        image_type=("ORIGINAL", "PRIMARY", "AXIAL"), contrast_bolus_agent=None, lossy=False, rows=int(ds.Rows),
        columns=int(ds.Columns), n_slices=len(headers), patient_sex="F", patient_age_years=61.0,
    )


PROTOCOL = (
    ProtocolFinding("tube voltage", "120 kVp", "120 kVp", Severity.AS_PROTOCOL),
    ProtocolFinding("slice thickness", "2.5 mm", "1.25 mm", Severity.TOLERATED, 1.1),
)

CALIBRATION_LINE = CalibrationLine(
    material=Material.K2HPO4, sigma_ref=1.46695849554, beta_ref=-1009.75004687, sigma_ct=1.24955849554,
    beta_ct=-10.1500468666, covariance=((1e-4, -1e-3), (-1e-3, 0.2)), r2=0.9998, see_hu=1.9,
    residuals_hu=(0.4, -0.7, 0.5, 0.1, -0.3), degrees_of_freedom=3,
)


def make_calibration(**changes: object) -> Calibration:
    rods = tuple(
        RodMeasurement(name, hu, 9.0, 4200, (0.0, 10.0 * k, -300.0), 0.01, 0.3)
        for k, (name, hu) in enumerate(zip("ABCDE", (-65.0, -30.0, 62.0, 90.0, 470.0), strict=True))
    )
    calibration = Calibration(
        id="cal-0017", series_instance_uid=generate_uid(entropy_srcs=["phantom series"]), phantom_serial="4541A",
        phantom_type="Mindways Model 3 CT",
        key=CalibrationKey("GE MEDICAL SYSTEMS", "Revolution", "CT1", "1", 120.0, "BODY FILTER", "STANDARD", "4541A",
                           PhantomSetup.TORSO),
        acquired=datetime(2026, 2, 27, 7, 30, tzinfo=UTC), line=CALIBRATION_LINE,
        measurement=PhantomMeasurement("4541A", rods, PhantomSetup.TORSO, 0.8, 300.0, 14.0),
        gates=(Gate("see_hu", 1.9, None, 4.0, True), Gate("r2", 0.9998, 0.999, None, True)),
        accepted=True, reasons=(), software_version="0.1.0",
    )
    return replace(calibration, **changes)  # type: ignore[arg-type]


CHOSEN = ChosenCalibration(
    calibration=make_calibration(), line=CALIBRATION_LINE, age_days=3.1, state="normal", provisional=True,
    bracketing_id=None, interpolation_weight=0.0,
)


def _header(grid: Grid, index: int, name: str) -> Dataset:
    row, column = (np.asarray(direction) for direction in grid.orientation)
    position = np.asarray(grid.origin_lps_mm) + index * grid.spacing_mm[0] * np.cross(row, column)
    ds = Dataset()
    ds.SpecificCharacterSet = "ISO_IR 100"
    ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    ds.SOPClassUID, ds.SOPInstanceUID = CTImageStorage, generate_uid(entropy_srcs=[name, "slice", str(index)])
    ds.StudyDate, ds.StudyTime, ds.TimezoneOffsetFromUTC = "20260302", "091200", "+0100"
    ds.AccessionNumber, ds.Modality, ds.Manufacturer = "A-4711", "CT", "GE MEDICAL SYSTEMS"
    ds.InstitutionName, ds.ReferringPhysicianName = "Klinikum S\u00fcd", "Gr\u00fcn^Otto"
    ds.StudyDescription, ds.SeriesDescription = "Lumbar spine", "AX 1.25 STANDARD"
    ds.ManufacturerModelName, ds.DeviceSerialNumber, ds.SoftwareVersions = "Revolution", "CT1", "1"
    ds.PatientName, ds.PatientID = "M\u00fcller^\u00c4nne", "P-0815"
    ds.PatientBirthDate, ds.PatientSex = "19650104", "F"
    ds.PatientAge, ds.StudyID, ds.SeriesNumber, ds.InstanceNumber = "061Y", "77", 3, index + 1
    ds.StudyInstanceUID = generate_uid(entropy_srcs=[name, "study"])
    ds.SeriesInstanceUID = generate_uid(entropy_srcs=[name, "series"])
    ds.FrameOfReferenceUID = generate_uid(entropy_srcs=[name, "frame of reference"])
    ds.SliceThickness, ds.PixelSpacing = grid.spacing_mm[0], list(grid.spacing_mm[1:])
    ds.ImagePositionPatient = [round(float(value), 6) for value in position]
    ds.ImageOrientationPatient = [*row.tolist(), *column.tolist()]
    ds.Rows, ds.Columns = grid.rows, grid.columns
    return ds


def _ellipsoid(
    shape: tuple[int, int, int], centre: tuple[float, float, float], affine: NDArray[np.float64], scale: float
) -> tuple[NDArray[np.float32], tuple[int, int, int]]:
    """Partial-volume like weights in a box, and where the box starts: 1 inside, 0 outside, linear over one voxel.

    The semi-axes are a part of the matrix, but never more than those of a vertebral body (mm).
    """
    voxel_mm = np.linalg.norm(affine[:3, :3], axis=0)
    semi_axes = np.minimum(np.array(shape) * (0.16, 0.15, 0.2), np.array([15.0, 17.0, 22.0]) / voxel_mm) * scale
    low = np.maximum(np.floor(np.array(centre) - semi_axes - 1), 0).astype(int)
    high = np.minimum(np.ceil(np.array(centre) + semi_axes + 2), shape).astype(int)
    slices, rows, columns = (
        ((np.arange(low[k], high[k], dtype=np.float32) - centre[k]) / semi_axes[k]) ** 2 for k in range(3)
    )
    radius = np.sqrt(slices[:, None, None] + rows[None, :, None] + columns[None, None, :])
    weights = np.clip((1.0 - radius) * semi_axes.min() + 0.5, 0.0, 1.0).astype(np.float32)
    return weights, (int(low[0]), int(low[1]), int(low[2]))


def _paint_vertebra(
    labels: NDArray[np.uint8], body: NDArray[np.uint8], centre: tuple[float, float, float],
    affine: NDArray[np.float64], label: int,
) -> None:
    """Cortex around cancellous bone; the rearmost quarter stands for the posterior elements."""
    for scale, value in ((1.0, 2), (0.75, 3)):
        weights, start = _ellipsoid(labels.shape, centre, affine, scale)
        box = tuple(slice(b, b + n) for b, n in zip(start, weights.shape, strict=True))
        inside = weights >= 0.5
        labels[box][inside] = label
        body[box][inside] = value
        if value == 2:
            arch = inside & (np.arange(start[1], start[1] + weights.shape[1])[None, :, None] > centre[1] + 7)
    outer, start = _ellipsoid(labels.shape, centre, affine, 1.0)
    body[tuple(slice(b, b + n) for b, n in zip(start, outer.shape, strict=True))][arch] = 1


def _voi(
    level: str, centre: tuple[float, float, float], shape: tuple[int, int, int], affine: NDArray[np.float64]
) -> Voi:
    weights, start = _ellipsoid(shape, centre, affine, 0.5)
    centre_lps = (affine @ np.array([*centre, 1.0]))[:3]
    normal = affine[:3, 0] / np.linalg.norm(affine[:3, 0])
    volume = float(weights.sum() * abs(np.linalg.det(affine[:3, :3])))
    return Voi(
        level=level, weights=weights, start=start, centre_lps_mm=tuple(float(v) for v in centre_lps),
        normal_lps=tuple(float(v) for v in normal), semi_axes_mm=(12.0, 9.0), depth_mm=9.0, cancellous_fraction=0.66,
        volume_mm3=volume, excluded_fraction=0.02, rule_version="1",
        outlines_lps_mm=(_circle_lps_mm(centre, shape, affine),),
    )


def _circle_lps_mm(
    centre: tuple[float, float, float], shape: tuple[int, int, int], affine: NDArray[np.float64]
) -> tuple[tuple[float, float, float], ...]:
    """The VOI's edge on the slice through its centre, closed."""
    angle = np.linspace(0, 2 * np.pi, 37)
    rows = centre[1] + shape[1] * 0.075 * np.sin(angle)
    columns = centre[2] + shape[2] * 0.1 * np.cos(angle)
    index = np.stack([np.full_like(rows, centre[0]), rows, columns, np.ones_like(rows)])
    return tuple((float(x), float(y), float(z)) for x, y, z in (affine @ index)[:3].T)


def _vertebra(voi: Voi, bmd_mg_cm3: float) -> VertebraBmd:
    return VertebraBmd(
        level=voi.level, bmd_mg_cm3=bmd_mg_cm3, u_bmd_mg_cm3=3.2, sd_bmd_mg_cm3=24.7,
        mean_hu=bmd_mg_cm3 * CALIBRATION_LINE.sigma_ct + CALIBRATION_LINE.beta_ct, sd_hu=30.9,
        n_voxels=float(voi.weights.sum()), voi_volume_mm3=voi.volume_mm3, voi_depth_mm=voi.depth_mm,
        voi_cancellous_fraction=voi.cancellous_fraction, voi_centre_lps_mm=voi.centre_lps_mm,
        terms=(UncertaintyTerm("calibration line", 1.8, True), UncertaintyTerm("noise", 0.6, False)),
        level_confidence=0.97,
    )
