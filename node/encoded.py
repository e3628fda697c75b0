"""What the encoders take and give: settings, attachments, predecessors, encoded objects.

Every field of `EncodingSettings` maps on to one key of config.yaml; the defaults here are the defaults there.
"""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from pydicom import Dataset

from analysis.version import SOFTWARE_NAME, SOFTWARE_VERSION


class ObjectKind(StrEnum):
    """One kind of result object; each has its own series, with one instance in it."""

    SEGMENTATION = "segmentation"
    MEASUREMENTS = "measurements"
    REPORT = "report"
    RADIOMICS = "radiomics"
    PDF = "pdf"
    PICTURE = "picture"
    REFUSAL = "refusal"
    PHANTOM_REPORT = "phantom report"
    PHANTOM_CHART = "phantom chart"
    OTHER_VERTEBRAE = "other vertebrae"


class MeasurementSrClass(StrEnum):
    """SOP class of the measurement and radiomics SR."""

    COMPREHENSIVE_3D = "Comprehensive3D"  # 1.2.840.10008.5.1.4.1.1.88.34, what IHE AI Results asks for
    COMPREHENSIVE = "Comprehensive"       # 1.2.840.10008.5.1.4.1.1.88.33, for a PACS that does not know 88.34


class TextSrClass(StrEnum):
    """SOP class of the readable reports."""

    ENHANCED = "Enhanced"                 # 1.2.840.10008.5.1.4.1.1.88.22
    BASIC = "Basic"                       # 1.2.840.10008.5.1.4.1.1.88.11, for a PACS that knows nothing else


class SegmentationType(StrEnum):
    BINARY = "BINARY"                     # 1.2.840.10008.5.1.4.1.1.66.4, shown by every viewer that shows SEG
    LABELMAP = "LABELMAP"                 # 1.2.840.10008.5.1.4.1.1.66.7, only for a destination configured for it


@dataclass(frozen=True, slots=True)
class SeriesNumbers:
    """Series numbers, chosen so that they do not collide with those of a scanner."""

    segmentation: int = 9001
    measurements: int = 9002
    report: int = 9003            # also of refusals and phantom reports
    radiomics: int = 9004
    pdf: int = 9005
    picture: int = 9006           # also of phantom charts
    other_vertebrae: int = 9007

    def of(self, kind: ObjectKind) -> int:
        """The number of the series that holds objects of this kind."""
        shared = {
            ObjectKind.REFUSAL: self.report, ObjectKind.PHANTOM_REPORT: self.report,
            ObjectKind.PHANTOM_CHART: self.picture, ObjectKind.OTHER_VERTEBRAE: self.other_vertebrae,
        }
        return shared[kind] if kind in shared else int(getattr(self, kind.value))


DEFAULT_OBJECTS = frozenset({
    ObjectKind.SEGMENTATION, ObjectKind.MEASUREMENTS, ObjectKind.REPORT, ObjectKind.RADIOMICS, ObjectKind.REFUSAL,
    ObjectKind.PHANTOM_REPORT, ObjectKind.PHANTOM_CHART,
})


@dataclass(frozen=True, slots=True)
class EncodingSettings:
    """Which objects are written and how; nothing in it changes a measured value.

    `uid_root` "2.25" needs no registration (PS3.5 B.2); a site with its own root writes it here.
    """

    uid_root: str = "2.25"
    objects: frozenset[ObjectKind] = DEFAULT_OBJECTS
    series_numbers: SeriesNumbers = SeriesNumbers()
    use_statement: str = "For research use only; not for clinical decisions"
    measurement_sr_class: MeasurementSrClass = MeasurementSrClass.COMPREHENSIVE_3D
    text_sr_class: TextSrClass = TextSrClass.ENHANCED
    segmentation_type: SegmentationType = SegmentationType.BINARY
    max_frames_per_segmentation: int = 400  # Weasis 4.6 does not show more (nroduit/Weasis#680)
    manufacturer: str = SOFTWARE_NAME
    model_name: str = SOFTWARE_NAME
    device_serial_number: str = "1"
    station_name: str = "QCT"
    software_version: str = SOFTWARE_VERSION
    private_scheme_organisation: str = SOFTWARE_NAME
    radiomics_model_active: bool = False   # True: a site model's answer goes into the radiomics SR
    configuration_digest: str = ""         # hash of what else decides on the result in the configuration; for UIDs


@dataclass(frozen=True, slots=True)
class Predecessor:
    """An earlier object of the same kind that a new one supersedes (Predecessor Documents Sequence)."""

    kind: ObjectKind
    sop_class_uid: str
    sop_instance_uid: str
    study_instance_uid: str
    series_instance_uid: str


@dataclass(frozen=True, slots=True)
class Attachments:
    """Pictures for the PDF and the Secondary Capture as PNG, and the time that the objects state.

    created : timezone-aware; None = now
    """

    report_png: bytes | None = None
    calibration_png: bytes | None = None
    created: datetime | None = None


@dataclass(frozen=True, slots=True, eq=False)
class EncodedObject:
    """One DICOM object, ready for the outbox."""

    kind: ObjectKind
    dataset: Dataset

    def as_predecessor(self) -> Predecessor:
        ds = self.dataset
        return Predecessor(self.kind, ds.SOPClassUID, ds.SOPInstanceUID, ds.StudyInstanceUID, ds.SeriesInstanceUID)


@dataclass(frozen=True, slots=True)
class ObjectIdentity:
    """The UIDs, number and description of one object about to be written."""

    kind: ObjectKind
    sop_instance_uid: str
    series_instance_uid: str
    series_number: int
    description: str
    created: datetime
    settings: EncodingSettings
