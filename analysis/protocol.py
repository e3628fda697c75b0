"""The patient scan against the reference protocol, attribute by attribute.

Each finding is "as protocol", "tolerated" with the uncertainty it adds, or "refused" with a reason. What must be
*equal* to the calibration scan (device, kVp, filter, kernel) is checked where the calibration is chosen; here stands
what no calibration can make good. An absent attribute is unknown, never equal: it is tolerated with its uncertainty
or, where nothing can be said without it, refused.
"""

from collections.abc import Callable
from dataclasses import dataclass

from analysis.kernels import is_sharp_kernel
from analysis.refusals import reason
from analysis.results import ProtocolFinding, SeriesHeader, Severity


@dataclass(frozen=True, slots=True)
class ProtocolReference:
    """The site's protocol, its tolerances, and the standard uncertainty of each tolerated departure, mg/cm3.

    contrast : "refuse" or "warn"; what to do when the header names a contrast agent
    """

    kvp: float = 120.0
    allowed_kvp: tuple[float, float] = (80.0, 140.0)
    tube_current_ma: tuple[float, float] = (50.0, 400.0)
    noise_index_hu: float = 10.0
    field_of_view_mm: float = 500.0
    field_of_view_tolerance: float = 0.20
    slice_thickness_mm: float = 1.25
    tolerated_thickness_mm: float = 3.0
    max_slice_thickness_mm: float = 3.0
    max_overlap_or_gap_fraction: float = 0.2
    refused_kernels: tuple[str, ...] = ()  # beside those that analysis.kernels knows as sharp
    allowed_kernels: tuple[str, ...] = ()  # these are body kernels, whatever their name says
    max_tilt_deg: float = 0.5
    contrast: str = "refuse"
    derived_image_words: tuple[str, ...] = (
        "DERIVED",
        "SECONDARY",
        "LOCALIZER",
        "MPR",
        "MIP",
        "MINIP",
        "PROJECTION IMAGE",
        "REFORMATTED",
    )
    energy_image_words: tuple[str, ...] = ("MONOENERGETIC", "MONO", "VMI", "MATERIAL", "IODINE", "WATER", "VNC", "DE")
    u_current_mg_cm3: float = 0.5
    u_field_of_view_mg_cm3: float = 0.5
    u_thickness_mg_cm3: float = 0.5
    u_unknown_mg_cm3: float = 0.5


def check_protocol(header: SeriesHeader, reference: ProtocolReference) -> tuple[ProtocolFinding, ...]:
    """Compare a series with the protocol; findings in the order of the report."""
    return tuple(check(header, reference) for check in CHECKS)


def _as_protocol(attribute: str, found: str, expected: str) -> ProtocolFinding:
    return ProtocolFinding(attribute, found, expected, Severity.AS_PROTOCOL)


def _tolerated(attribute: str, found: str, expected: str, u_mg_cm3: float) -> ProtocolFinding:
    return ProtocolFinding(attribute, found, expected, Severity.TOLERATED, u_mg_cm3)


def _refused(attribute: str, found: str, expected: str, code: str) -> ProtocolFinding:
    text = f"{attribute} is {found}; expected {expected}"
    return ProtocolFinding(attribute, found, expected, Severity.REFUSED, 0.0, reason(code, text))


def _check_kvp(header: SeriesHeader, reference: ProtocolReference) -> ProtocolFinding:
    low, high = reference.allowed_kvp
    expected = f"{reference.kvp:g} kV, allowed {low:g}-{high:g} kV"
    if header.kvp is None:
        return _refused("tube voltage", "absent", expected, "PROTOCOL_KVP")
    found = f"{header.kvp:g} kV"
    if not low <= header.kvp <= high:
        return _refused("tube voltage", found, expected, "PROTOCOL_KVP")
    if abs(header.kvp - reference.kvp) < 0.5:
        return _as_protocol("tube voltage", found, expected)
    return _tolerated("tube voltage", found, expected, 0.0)  # its own calibration key carries the difference


def _check_current(header: SeriesHeader, reference: ProtocolReference) -> ProtocolFinding:
    low, high = reference.tube_current_ma
    expected = f"{low:g}-{high:g} mA, modulated, noise index {reference.noise_index_hu:g} HU"
    if header.tube_current_ma is None:
        return _tolerated("tube current", "absent", expected, reference.u_unknown_mg_cm3)
    least, most = header.tube_current_ma
    found = f"{least:g}-{most:g} mA" if most > least else f"{least:g} mA"
    if low <= least and most <= high:
        return _as_protocol("tube current", found, expected)
    return _tolerated("tube current", found, expected, reference.u_current_mg_cm3)


def _check_field_of_view(header: SeriesHeader, reference: ProtocolReference) -> ProtocolFinding:
    expected = f"{reference.field_of_view_mm:g} mm"
    size_mm = header.reconstruction_diameter_mm or header.columns * header.pixel_spacing_mm[1]
    found = f"{size_mm:.0f} mm"
    if abs(size_mm - reference.field_of_view_mm) <= 1.0:
        return _as_protocol("field of view", found, expected)
    if abs(size_mm / reference.field_of_view_mm - 1.0) <= reference.field_of_view_tolerance:
        return _tolerated("field of view", found, expected, reference.u_field_of_view_mg_cm3 / 2)
    return _tolerated("field of view", found, expected, reference.u_field_of_view_mg_cm3)


def _check_thickness(header: SeriesHeader, reference: ProtocolReference) -> ProtocolFinding:
    expected = f"{reference.slice_thickness_mm:g} mm, at most {reference.max_slice_thickness_mm:g} mm"
    # a thick slice at a small interval is as blurred as its thickness says
    thickness_mm = max(header.slice_thickness_mm or 0.0, header.spacing_between_slices_mm)
    found = f"{thickness_mm:g} mm"
    if thickness_mm > reference.max_slice_thickness_mm + 1e-3:
        return _refused("slice thickness", found, expected, "PROTOCOL_THICKNESS")
    if abs(thickness_mm - reference.slice_thickness_mm) <= 0.01:
        return _as_protocol("slice thickness", found, expected)
    thick = max(0.0, thickness_mm - reference.slice_thickness_mm)
    share = thick / max(reference.tolerated_thickness_mm - reference.slice_thickness_mm, 1e-6)
    return _tolerated("slice thickness", found, expected, reference.u_thickness_mg_cm3 * share)


def _check_interval(header: SeriesHeader, reference: ProtocolReference) -> ProtocolFinding:
    interval_mm = header.spacing_between_slices_mm
    expected = f"equal to the thickness, {reference.slice_thickness_mm:g} mm"
    if header.slice_thickness_mm is None:
        return _tolerated(
            "slice interval", f"{interval_mm:g} mm, thickness absent", expected, reference.u_unknown_mg_cm3
        )
    found = f"{interval_mm:g} mm at {header.slice_thickness_mm:g} mm thickness"
    if interval_mm > header.slice_thickness_mm * (1 + reference.max_overlap_or_gap_fraction):
        return _refused("slice interval", found, expected, "SLICE_GAP")
    if abs(interval_mm - header.slice_thickness_mm) <= 0.01:
        return _as_protocol("slice interval", found, expected)
    return _tolerated("slice interval", found, expected, 0.0)


def _check_kernel(header: SeriesHeader, reference: ProtocolReference) -> ProtocolFinding:
    expected = "a body (soft tissue) kernel"
    if not header.convolution_kernel:
        return _refused("kernel", "absent", expected, "PROTOCOL_KERNEL")
    if is_sharp_kernel(header.convolution_kernel, reference.refused_kernels, reference.allowed_kernels):
        return _refused("kernel", header.convolution_kernel, expected, "PROTOCOL_KERNEL")
    return _as_protocol("kernel", header.convolution_kernel, expected)


def _check_tilt(header: SeriesHeader, reference: ProtocolReference) -> ProtocolFinding:
    tilt_deg = header.gantry_detector_tilt_deg
    expected = "0 degrees"
    if tilt_deg is None:
        return _as_protocol(
            "gantry tilt", "absent", expected
        )  # the slice positions are checked when the volume is built
    if abs(tilt_deg) > reference.max_tilt_deg:
        return _refused("gantry tilt", f"{tilt_deg:g} degrees", expected, "GANTRY_TILT")
    return _as_protocol("gantry tilt", f"{tilt_deg:g} degrees", expected)


def _check_contrast(header: SeriesHeader, reference: ProtocolReference) -> ProtocolFinding:
    expected = "no intravenous contrast"
    if not header.contrast_bolus_agent:
        return _as_protocol("contrast agent", "none", expected)
    if reference.contrast == "warn":
        return _tolerated("contrast agent", header.contrast_bolus_agent, expected, 0.0)
    return _refused("contrast agent", header.contrast_bolus_agent, expected, "CONTRAST_TAG")


def _check_compression(header: SeriesHeader, reference: ProtocolReference) -> ProtocolFinding:
    if header.lossy:
        return _refused("compression", "lossy", "lossless", "LOSSY")
    return _as_protocol("compression", "lossless", "lossless")


def _check_image_type(header: SeriesHeader, reference: ProtocolReference) -> ProtocolFinding:
    expected = "ORIGINAL\\PRIMARY\\AXIAL"
    found = "\\".join(header.image_type) or "absent"
    words = {word.upper() for word in header.image_type}
    if words & set(reference.energy_image_words):
        return _refused("image type", found, expected, "PROTOCOL_ENERGY")
    if words & set(reference.derived_image_words) or "ORIGINAL" not in words:
        return _refused("image type", found, expected, "DERIVED_IMAGE")
    return _as_protocol("image type", found, expected)


def _check_position(header: SeriesHeader, reference: ProtocolReference) -> ProtocolFinding:
    expected = "supine (HFS or FFS)"
    if header.patient_position is None:
        return _tolerated("patient position", "absent", expected, reference.u_unknown_mg_cm3)
    if header.patient_position in ("HFS", "FFS"):
        return _as_protocol("patient position", header.patient_position, expected)
    return _tolerated("patient position", header.patient_position, expected, reference.u_unknown_mg_cm3)


Check = Callable[[SeriesHeader, ProtocolReference], ProtocolFinding]
CHECKS: tuple[Check, ...] = (
    _check_kvp,
    _check_current,
    _check_field_of_view,
    _check_thickness,
    _check_interval,
    _check_kernel,
    _check_tilt,
    _check_contrast,
    _check_compression,
    _check_image_type,
    _check_position,
)
