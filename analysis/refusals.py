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
    # phantom
    "NOT_A_PHANTOM": ReasonText("The series shows no QCT calibration phantom", "Check the series or its description"),
    "UNKNOWN_PHANTOM_SERIAL": ReasonText("The phantom's serial is not registered", "Register the unit with its certificate"),
    "TOO_FEW_PHANTOM_SLICES": ReasonText("Too few slices show the rods", "Scan the phantom with the whole protocol"),
    "RODS_OUTSIDE_FOV": ReasonText("Rods lie outside the field of view", "Centre the phantom and scan it again"),
    "ROD_DISTURBED": ReasonText("A rod is disturbed by air, metal or an artefact", "Clear the phantom and scan it again"),
    "WRONG_PHANTOM": ReasonText("The rods do not fit the certificate of the stated serial", "Check the phantom's serial"),
    "ROD_ASSIGNMENT_AMBIGUOUS": ReasonText("The rods cannot be named with confidence", "Check the phantom and its registration"),
    "PHANTOM_TILTED": ReasonText("The phantom lies too oblique", "Straighten the phantom and scan it again"),
    "PHANTOM_MOVED": ReasonText("The phantom moved during the scan", "Scan the phantom again"),
    "AIR_GAP": ReasonText("Air between the phantom and the body on it", "Close the gap and scan the phantom again"),
    "PHANTOM_TYPE_UNSUPPORTED": ReasonText("This phantom type cannot be measured automatically", "Enter the rods of the certificate"),
    "NO_FIT_DIAGNOSTICS": ReasonText("Two rods: the line cannot be checked against the rods", "Prefer a phantom with three rods or more"),
    "ROD_ORDER_DIFFERS": ReasonText("The order of the rods differs from the unverified template", "Confirm the phantom's geometry"),
    "SLICES_DROPPED": ReasonText("Disturbed slices were left out", "Look at the phantom images"),
    # calibration gates
    "GATE_R2": ReasonText("The rods do not lie on a line (R2)", "Scan the phantom again"),
    "GATE_SEE": ReasonText("The rods scatter too much about the line", "Scan the phantom again"),
    "GATE_RESIDUAL": ReasonText("One rod lies too far from the line", "Check the phantom and scan it again"),
    "GATE_SIGMA": ReasonText("The slope does not fit the tube voltage", "Check the tube voltage and the set-up"),
    "GATE_BETA": ReasonText("The CT number of water is off", "Run the scanner's own calibration"),
    "GATE_ASSIGNMENT": ReasonText("Another naming of the rods fits nearly as well", "Check the phantom and scan it again"),
    "GATE_TILT": ReasonText("The phantom lies too oblique", "Straighten the phantom and scan it again"),
    "GATE_VOXELS": ReasonText("Too few voxels in a rod", "Scan a longer part of the phantom"),
    "GATE_ROD_SD": ReasonText("One rod is much noisier than the others", "Look for artefacts and scan again"),
    "GATE_AXIAL_SLOPE": ReasonText("A rod's CT number drifts along the scan", "Look for artefacts and scan again"),
    "GATE_STANDARD_ERROR": ReasonText("The noise makes the line too uncertain", "Scan a longer part of the phantom or with more dose"),
    "GATE_LEAVE_ONE_OUT": ReasonText("The line depends too much on one rod", "Check the phantom and scan it again"),
    "GATE_BASELINE_SEE": ReasonText("The scatter about the line changed against the baseline", "Scan the phantom again"),
    "GATE_BASELINE_SIGMA": ReasonText("The slope left the baseline", "Check tube voltage and set-up, call the physicist"),
    "GATE_BASELINE_ROD": ReasonText("One rod changed against the baseline", "Check the phantom and scan it again"),
    "GATE_BASELINE_SD": ReasonText("A rod is much noisier than in the baseline", "Check dose, warm tube and artefacts; scan again"),
    "GATE_PREVIOUS": ReasonText("The reading moved too far from the last accepted scan", "Scan the phantom again the same day"),
    # drift
    "QC_STOP": ReasonText("A control chart is out of its limits", "Scan again; if it repeats, call the physicist"),
    "QC_REPEAT": ReasonText("A control chart asks for a repeat", "Scan the phantom again the same day"),
    "QC_TREND": ReasonText("The readings drift by more than the allowed rate", "Tell the medical physicist"),
    "QC_PREVIOUS": ReasonText("The reading moved since the last accepted scan", "Watch the next scan; check the set-up"),
    "QC_MISSED_WEEK": ReasonText("The weekly phantom scan is overdue", "Scan the phantom"),
    # choice of the calibration
    "CALIBRATION_KEY_MISMATCH": ReasonText("No calibration with this device and protocol", "Scan the phantom with this protocol"),
    "CALIBRATION_EPOCH": ReasonText("The scanner changed since the last phantom scan", "Scan the phantom"),
    "CALIBRATION_SINCE_SERVICE": ReasonText("The scanner was calibrated since the phantom scan", "Scan the phantom"),
    "CALIBRATION_TABLE_HEIGHT": ReasonText("The table height is far from the phantom scan's", "Scan the phantom at this height"),
    "CALIBRATION_SOFT_DIFFERENCE": ReasonText("The scan differs from the phantom scan in a minor way", "Keep the protocol"),
    "CALIBRATION_UNKNOWN_SOFT": ReasonText("A setting cannot be compared with the phantom scan", "Check the scanner's export"),
    "CALIBRATION_REJECTED_SINCE": ReasonText("The last phantom scan was rejected", "Scan the phantom again"),
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
    "UID_MISSING": ReasonText("Images lack UIDs of their own, which results refer to", "Send the scanner's own images"),
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
    # protocol, images and body
    "PROTOCOL_KERNEL": ReasonText("The kernel is absent or sharpens edges", "Reconstruct with a body kernel"),
    "PROTOCOL_ENERGY": ReasonText("The images are mono-energetic or material images", "Send the conventional reconstruction"),
    "BODY_TRUNCATED": ReasonText("The body reaches the edge of the field of view near the spine", "Reconstruct with a larger field of view"),
    "BODY_SIZE": ReasonText("The body's size is far from the calibration's", "Scan the phantom in a set-up of that size"),
    "HU_SCALE": ReasonText("Air, fat, muscle or blood read outside their plausible CT numbers", "Check the scanner's water and air calibration"),
    "INTERNAL_CHECK_DIFFERS": ReasonText("The phantomless cross-check disagrees", "Check phantom scan and patient scan by eye"),
    # vertebra and VOI
    "VERTEBRA_MISSING": ReasonText("The vertebra was not found", "Check that the series shows T12 to L3"),
    "VERTEBRA_CUT": ReasonText("The vertebra is cut by the edge of the images", "Send a series that shows the whole vertebra"),
    "FRACTURE": ReasonText("Fracture suspected from the vertebra's heights", "Have the vertebra read; measure another level"),
    "CEMENT": ReasonText("Cement in the vertebra", "Measure another level"),
    "METAL": ReasonText("Metal in or beside the vertebra", "Measure another level"),
    "LESION": ReasonText("A lesion suspected in the vertebra", "Have the vertebra read; measure another level"),
    "SCLEROSIS": ReasonText("Sclerosis in the vertebra", "Measure another level"),
    "VOI_FRAME": ReasonText("The endplates cannot be fitted", "Measure by hand"),
    "VOI_MARGIN": ReasonText("No VOI keeps its distance to the cortex", "Measure by hand"),
    "VOI_COVERAGE": ReasonText("The VOI covers too little of the cancellous section", "Measure by hand"),
    "VOI_SMALL": ReasonText("The VOI covers less of the cancellous section than usual", "None; the BMD stands. Small vertebrae leave little room"),
    "VOI_EXCLUSIONS": ReasonText("Too much of the VOI is bone island, vein or vacuum", "Have the vertebra read; measure by hand"),
    "VOI_HU_RANGE": ReasonText("The mean CT number is not one of trabecular bone", "Check the images"),
    "NO_USABLE_VERTEBRA": ReasonText("None of the configured levels can be measured", "See the reason of each level"),
    "TOO_FEW_VERTEBRAE": ReasonText("Fewer vertebrae than configured can be measured", "See the reason of each level"),
    "FALLBACK_LEVEL": ReasonText("Another level replaces L1 or L2", "Compare only with the same levels"),
    "SINGLE_VERTEBRA": ReasonText("Only one vertebra was measured", "Do not read it as the L1-L2 mean"),
    "LEVELS_DISAGREE": ReasonText("The vertebrae differ too much to be averaged", "Look for a fracture or lesion; measure by hand"),
    "LEVELS_DIFFER": ReasonText("The vertebrae differ more than usual", "Look for a fracture or lesion"),
    "REFERENCE_UNKNOWN": ReasonText("Without sex and an adult's age there is no Z-score", "None; the BMD stands"),
    "RADIOMICS_INPUT": ReasonText("The VOI cannot be described by texture features", "Use the density alone"),
    "RADIOMICS_LEVELS": ReasonText("The texture model was trained on other vertebrae", "Use the density alone"),
    "RADIOMICS_CONTRACT": ReasonText("The texture model needs another extraction", "Train a model with this extraction"),
    "RADIOMICS_ACQUISITION": ReasonText("The texture model knows no scans like this one", "Use the density alone"),
    "RADIOMICS_DOMAIN": ReasonText("The texture lies outside that of the model's training", "Use the density alone"),
    "RADIOMICS_UNDECIDED": ReasonText("The texture model states no single class", "Use the density alone"),
    "RADIOMICS_CONTRADICTION": ReasonText("Texture and density disagree", "Use the density; look at the images"),
    "PHANTOM_AS_PATIENT": ReasonText("A phantom scan is labelled as a patient", "Send it under the phantom's PatientID"),
    # fault
    "NO_SUITABLE_SERIES": ReasonText("The study holds no series that may be analysed", "Send the original axial CT series"),
}


# The setting of config.yaml that decides what is refused or flagged with a code; codes without one leave no choice.
SETTINGS: dict[str, str] = {
    "CALIBRATION_EXPIRED": "calibration_choice.max_days",
    "CALIBRATION_COMMISSIONING": "calibration_choice.commissioning.scans",
    "CALIBRATION_KEY_MISSING": "calibration_choice.may_be_absent",
    "CALIBRATION_TABLE_HEIGHT": "calibration_choice.max_table_height_mm",
    "CALIBRATION_MATERIAL": "bmd.material",
    "UNKNOWN_PHANTOM_SERIAL": "phantoms",
    "GATE_R2": "calibration.min_r2",
    "GATE_SEE": "calibration.max_see_hu",
    "GATE_RESIDUAL": "calibration.max_residual_hu",
    "GATE_SIGMA": "calibration.sigma_ref_ranges",
    "GATE_BETA": "calibration.max_beta_ct_hu",
    "GATE_ASSIGNMENT": "calibration.min_assignment_ratio",
    "GATE_TILT": "calibration.max_tilt_deg",
    "GATE_VOXELS": "calibration.min_rod_voxels",
    "GATE_ROD_SD": "calibration.max_rod_sd_ratio",
    "GATE_AXIAL_SLOPE": "calibration.max_axial_slope_hu_per_mm",
    "GATE_STANDARD_ERROR": "calibration.max_noise_mg_cm3",
    "GATE_LEAVE_ONE_OUT": "calibration.max_leave_one_out_mg_cm3",
    "PROTOCOL_KVP": "protocol.allowed_kvp",
    "PROTOCOL_THICKNESS": "protocol.max_slice_thickness_mm",
    "PROTOCOL_ENERGY": "protocol.energy_image_words",
    "CONTRAST_TAG": "protocol.contrast",
    "HU_SCALE": "tissues.outside",
    "CONTRAST_IMAGE": "protocol.contrast",
    "LEVEL_UNCERTAIN": "segmentation.min_level_confidence",
    "NO_USABLE_VERTEBRA": "bmd.fallback_levels",
    "TOO_FEW_VERTEBRAE": "bmd.minimum_vertebrae",
    "LEVELS_DISAGREE": "bmd.refuse_difference_mg_cm3",
}


def advice(code: str) -> str:
    """What the operator can do, at the scanner or in the configuration; empty when the table does not know the code."""
    if code not in REASONS:
        return ""
    action, setting = REASONS[code].action, SETTINGS.get(code)
    return f"{action} (config.yaml: {setting})" if setting else action


def reason(code: str, text: str) -> Reason:
    """A Reason whose code is sure to stand in the table; `text` says what was found and expected."""
    if code not in REASONS:
        raise KeyError(f"reason code {code!r} is not in analysis.refusals.REASONS")
    return Reason(code, text)
