"""Every reason code in one table: what it means and what the operator can do.

Used by `report.json`, the Structured Reports and the log. A code that refuses and a code that flags share the table;
the result says which it was.
"""

from dataclasses import dataclass

from analysis.results import Reason


@dataclass(frozen=True, slots=True)
class ReasonText:
    """What a reason code means, in words for the report, and what the operator can do about it."""

    meaning: str
    action: str


REASONS: dict[str, ReasonText] = {
    # calibration
    "NO_CALIBRATION": ReasonText("No accepted calibration for this scanner and protocol", "Scan the phantom with this protocol"),
    "CALIBRATION_EXPIRED": ReasonText("The last accepted phantom scan is too old", "Scan the phantom"),
    "CALIBRATION_AGED": ReasonText("The last accepted phantom scan is more than a week old", "Scan the phantom"),
    "CALIBRATION_STOPPED": ReasonText("The calibration series is stopped by quality control", "See `qct-node calibrations`"),
    "CALIBRATION_COMMISSIONING": ReasonText("The calibration key is not commissioned yet", "Scan the phantom again or declare"),
    "CALIBRATION_KEY_MISSING": ReasonText("A tag that must match the calibration is missing", "Check the scanner's export"),
    "CALIBRATION_MATERIAL": ReasonText("Limits are configured for another material", "Configure limits for this phantom"),
    # series geometry and pixels
    "SLICE_GAP": ReasonText("Slices are missing", "Send the complete series"),
    "DUPLICATE_SLICE": ReasonText("Two slices lie at the same position", "Send one series at a time"),
    "UNEVEN_SPACING": ReasonText("Slice spacing is not uniform", "Reconstruct with one interval"),
    "GANTRY_TILT": ReasonText("The gantry was tilted", "Scan without tilt"),
    "NOT_HU": ReasonText("Pixel values are not in Hounsfield units", "Send the original reconstruction"),
    "LOSSY": ReasonText("The images were compressed with loss", "Send uncompressed or losslessly compressed images"),
    "DERIVED_IMAGE": ReasonText("The images are derived, not original", "Send the original axial series"),
    "TOO_FEW_SLICES": ReasonText("Too few slices", "Send the complete series"),
    "PIXELS_UNREADABLE": ReasonText("Pixel data cannot be decoded", "Send the images again"),
    "MIXED_GEOMETRY": ReasonText("The slices do not make one volume", "Send one axial series"),
    # protocol
    "PROTOCOL_KVP": ReasonText("The tube voltage is not allowed", "Scan as the protocol says"),
    "PROTOCOL_THICKNESS": ReasonText("The slices are too thick", "Reconstruct thinner slices"),
    "CONTRAST_TAG": ReasonText("Intravenous contrast is stated in the header", "Send the unenhanced series"),
    "CONTRAST_IMAGE": ReasonText("Intravenous contrast is visible in the images", "Send the unenhanced series"),
    # segmentation
    "NO_SPINE": ReasonText("No spine was found", "Check that the series shows the lumbar spine"),
    "LEVEL_UNCERTAIN": ReasonText("The vertebral level cannot be named with confidence", "Measure by hand"),
    "TRANSITIONAL_ANATOMY": ReasonText("Ribs and sacrum disagree on the numbering", "Check the level by hand"),
    # fault
    "NO_SUITABLE_SERIES": ReasonText("The study holds no series that may be analysed", "Send the original axial CT series"),
}


def reason(code: str, text: str) -> Reason:
    """A Reason whose code is sure to stand in the table; `text` says what was found and expected."""
    if code not in REASONS:
        raise KeyError(f"reason code {code!r} is not in analysis.refusals.REASONS")
    return Reason(code, text)
