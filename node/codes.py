"""Every coded concept that we write, once.

Public codes are from SNOMED CT (SCT), DICOM PS3.16 annex D (DCM), LOINC (LN), UCUM and UMLS. Where no public code
exists (volumetric BMD by QCT, the trabecular VOI, the method) the private scheme `99QCT` below is used, declared in
Coding Scheme Identification Sequence and listed in docs/conformance.md; no SNOMED code is guessed.
"""

import csv
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from highdicom.coding_schemes import CodingSchemeIdentificationItem
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from analysis.results import Classification, Material

PRIVATE_SCHEME = "99QCT"

# vertebrae: CID 7603 and PS3.16 context group of vertebrae
VERTEBRAE: dict[str, Code] = {
    "T11": codes.SCT.T11Vertebra,
    "T12": codes.SCT.T12Vertebra,
    "L1": codes.SCT.L1Vertebra,
    "L2": codes.SCT.L2Vertebra,
    "L3": codes.SCT.L3Vertebra,
    "L4": codes.SCT.L4Vertebra,
    "L5": codes.SCT.L5Vertebra,
}
VERTEBRA = codes.SCT.Vertebra
LUMBAR_SPINE = codes.SCT.LumbarSpine

# segments: CID 7150 categories, CID 7159 and others for types
ANATOMICAL_STRUCTURE = codes.SCT.AnatomicalStructure
TISSUE = codes.SCT.Tissue
VERTEBRAL_BODY = Code("3572006", "SCT", "Vertebral body")
BONE_TISSUE = codes.SCT.BoneTissue

# quantities
VBMD: dict[Material, Code] = {
    Material.K2HPO4: Code("VBMD-K2HPO4", PRIVATE_SCHEME, "Volumetric BMD (K2HPO4)"),
    Material.HA: Code("VBMD-HA", PRIVATE_SCHEME, "Volumetric BMD (HA)"),
}
VBMD_UNCERTAINTY = Code("VBMD-U", PRIVATE_SCHEME, "BMD uncertainty (k=2)")
VBMD_SD = Code("VBMD-SD", PRIVATE_SCHEME, "BMD standard deviation in VOI")
MEAN_HU = codes.DCM.MeanAttenuationCoefficient
SD_HU = codes.DCM.StandardDeviationOfAttenuationCoefficient
VOLUME = codes.SCT.Volume
MG_PER_CM3 = codes.UCUM.MilligramsPerCubicCentimeter
HU = codes.UCUM.HounsfieldUnit
CM3 = codes.UCUM.CubicCentimeter
NO_UNITS = codes.UCUM.NoUnits

# methods
ASYNCHRONOUS_QCT = Code("ASYNC-QCT", PRIVATE_SCHEME, "Asynchronous quantitative CT")
RADIOMICS_METHOD = Code("RADIOMICS", PRIVATE_SCHEME, "Radiomic feature extraction")
MEASUREMENT_METHOD = codes.SCT.MeasurementMethod

# the answer
BMD_CATEGORY = Code("BMD-CATEGORY", PRIVATE_SCHEME, "QCT BMD category")
BORDERLINE = Code("BORDERLINE", PRIVATE_SCHEME, "BMD within uncertainty of a category limit")
CLASSIFICATION: dict[Classification, Code] = {
    Classification.OSTEOPOROSIS: Code("64859006", "SCT", "Osteoporosis"),
    Classification.OSTEOPENIA: Code("312894000", "SCT", "Osteopenia"),
    Classification.NORMAL: Code("17621005", "SCT", "Normal"),
}
YES = codes.SCT.Yes
NO = codes.SCT.No
RADIOMICS_ANSWER = Code("RADIOMICS-CLASS", PRIVATE_SCHEME, "Radiomics model's category")

# report-level texts of the measurement SR
USE_STATEMENT = Code("USE-STATEMENT", PRIVATE_SCHEME, "Use statement")
CATEGORY_LIMITS = Code("BMD-LIMITS", PRIVATE_SCHEME, "BMD category limits")
CALIBRATION_OBJECT = codes.DCM.CalibrationObjectUsed
CALIBRATION_METHOD = codes.DCM.CalibrationMethod
CALIBRATION_DATETIME = Code("113723", "DCM", "Calibration DateTime")
QUALITY_FLAG = Code("QUALITY-FLAG", PRIVATE_SCHEME, "Quality flag")
SCAN_FINDING = Code("SCAN-FINDING", PRIVATE_SCHEME, "Scan finding")
POPULATION_REFERENCE = Code("POPULATION-REF", PRIVATE_SCHEME, "Population reference")
CHANGE = Code("BMD-CHANGE", PRIVATE_SCHEME, "Change since earlier result")
EXTRACTION_SETTINGS = Code("EXTRACTION", PRIVATE_SCHEME, "Feature extraction settings")
QUALITATIVE_EVALUATIONS = Code("C0034375", "UMLS", "Qualitative Evaluations")

# documents: CID 100 for the procedure, CID 7000 for the title, CID 7001/7002 for sections and texts
PROCEDURE_REPORTED = codes.LN.CTUnspecifiedBodyRegion
REPORT_TITLE = Code("18748-4", "LN", "Diagnostic Imaging Report")
MEASUREMENT_REPORT_TITLE = codes.DCM.ImagingMeasurementReport
FINDINGS = codes.DCM.Findings
FINDING = codes.DCM.Finding
IMPRESSIONS = codes.DCM.Impressions
IMPRESSION = codes.DCM.Impression
PROCEDURE_DESCRIPTIONS = Code("121064", "DCM", "Current Procedure Descriptions")
PROCEDURE_DESCRIPTION = Code("121065", "DCM", "Procedure Description")
RECOMMENDATIONS = Code("121074", "DCM", "Recommendations")
RECOMMENDATION = Code("121075", "DCM", "Recommendation")
ENGLISH = Code("en-US", "RFC5646", "English (United States)")
ARTIFICIAL_INTELLIGENCE = codes.DCM.ArtificialIntelligence


@dataclass(frozen=True, slots=True)
class FeatureCode:
    """How one radiomic feature is coded; `added` turns pyradiomics' value into the coded definition's value."""

    code: Code
    added: float


@cache
def feature_codes() -> dict[str, FeatureCode]:
    """pyradiomics name without image type ("glcm_Contrast") -> code.

    IBSI reference manual codes; TotalEnergy and MCC, which IBSI does not define, are private. pyradiomics' kurtosis is
    IBSI's excess kurtosis (IPH6) plus 3.
    """
    with (Path(__file__).parent / "ibsi_codes.csv").open(newline="") as file:
        return {
            row["feature"]: FeatureCode(Code(row["code"], row["scheme"], row["meaning"]), float(row["added"]))
            for row in csv.DictReader(file)
        }


def vertebra_code(level: str) -> Code:
    """SCT code of a level; "Vertebra" for a level without an own entry in the table."""
    return VERTEBRAE.get(level, VERTEBRA)


def region_code(levels: tuple[str, ...]) -> Code:
    """The one region that holds all levels."""
    if len(levels) == 1:
        return vertebra_code(levels[0])
    return LUMBAR_SPINE if all(level.startswith("L") for level in levels) else VERTEBRA


def coding_schemes(organisation: str, *, with_ibsi: bool = False) -> list[CodingSchemeIdentificationItem]:
    """Identification of the schemes that are not DICOM's own (PS3.3 C.12.1.1.1)."""
    items = [CodingSchemeIdentificationItem(
        PRIVATE_SCHEME, name="QCT node private codes", responsible_organization=organisation
    )]
    if with_ibsi:
        items.append(CodingSchemeIdentificationItem("IBSI", name="Image Biomarker Standardisation Initiative"))
    return items
