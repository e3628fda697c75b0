"""Where results go: one PACS (Storage SCP) per destination, and which form of each object it is offered first."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

from annotated_types import Ge, Le, MaxLen, MinLen

from node.encoded import DEFAULT_OBJECTS, MeasurementSrClass, ObjectKind, SegmentationType, TextSrClass

# PS3.4 B.5 and PS3.6 A: the SOP class of each form of an object
SOP_CLASS_UIDS: dict[str, str] = {
    SegmentationType.BINARY: "1.2.840.10008.5.1.4.1.1.66.4",
    SegmentationType.LABELMAP: "1.2.840.10008.5.1.4.1.1.66.7",
    MeasurementSrClass.COMPREHENSIVE_3D: "1.2.840.10008.5.1.4.1.1.88.34",
    MeasurementSrClass.COMPREHENSIVE: "1.2.840.10008.5.1.4.1.1.88.33",
    TextSrClass.ENHANCED: "1.2.840.10008.5.1.4.1.1.88.22",
    TextSrClass.BASIC: "1.2.840.10008.5.1.4.1.1.88.11",
}

AeTitle = Annotated[str, MinLen(1), MaxLen(16)]
Port = Annotated[int, Ge(1), Le(65535)]


class CommitmentUse(StrEnum):
    """Whether storage commitment (PS3.4 Annex J) is asked for."""

    WHEN_OFFERED = "when offered"
    REQUIRED = "required"
    NEVER = "never"


@dataclass(frozen=True, slots=True)
class RetrySettings:
    """How a destination that is away, or an object that it cannot take now, is tried again."""

    first_delay_s: float = 5.0  # after the first failure; doubled after each further one
    longest_delay_s: float = 60.0  # between two attempts to reach a destination that is away
    longest_object_delay_s: float = 600.0  # between two attempts to store an object that was refused for now
    jitter: float = 0.2  # each delay is varied by up to this fraction, so that nodes do not march in step
    failures_to_open: int = 3  # failures in a row after which only a C-ECHO probes the destination
    give_up_after_days: float = 14.0  # an object still refused for now is put aside


@dataclass(frozen=True, slots=True)
class DestinationTls:
    """TLS towards the destination (PS3.15 B.12, TLS 1.2 or newer)."""

    enabled: bool = False
    ca_file: Path | None = None  # certificates that may sign the destination's; none: the system's
    certificate_file: Path | None = None  # our own, where the destination asks for one
    key_file: Path | None = None
    check_host_name: bool = True


@dataclass(frozen=True, slots=True)
class Destination:
    """One PACS that results are sent to."""

    name: str
    ae_title: AeTitle
    host: str
    port: Port
    calling_ae_title: AeTitle | None = None  # None: node.ae_title
    objects: frozenset[ObjectKind] = DEFAULT_OBJECTS
    segmentation_types: Annotated[tuple[SegmentationType, ...], MinLen(1)] = (SegmentationType.BINARY,)
    measurement_sr_classes: Annotated[tuple[MeasurementSrClass, ...], MinLen(1)] = (
        MeasurementSrClass.COMPREHENSIVE_3D,
        MeasurementSrClass.COMPREHENSIVE,
    )
    text_sr_classes: Annotated[tuple[TextSrClass, ...], MinLen(1)] = (TextSrClass.ENHANCED, TextSrClass.BASIC)
    commitment: CommitmentUse = CommitmentUse.WHEN_OFFERED
    commitment_wait_s: float = 5.0  # how long an answer on the same association is awaited
    commitment_deadline_h: float = 24.0  # without an answer: the operator is told and commitment is asked again
    connect_timeout_s: float = 10.0
    response_timeout_s: float = 60.0
    objects_per_association: int = 500
    tls: DestinationTls = DestinationTls()
    retry: RetrySettings = RetrySettings()

    def preferred_classes(self) -> tuple[str, ...]:
        """SOP classes with more than one form, the preferred one first."""
        forms = (*self.segmentation_types, *self.measurement_sr_classes, *self.text_sr_classes)
        return tuple(SOP_CLASS_UIDS[form] for form in forms)
