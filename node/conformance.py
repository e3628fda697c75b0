"""DICOM Conformance Statement in the order of PS3.2 Annex N, generated from the running configuration.

What is switched off is not claimed, so that the statement cannot drift from the software. Sections are numbered from 1
for the overview, as the template asks.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from pydicom.sr.coding import Code
from pydicom.uid import UID

from node import codes
from node.encoded import EncodingSettings, MeasurementSrClass, ObjectKind, SegmentationType, TextSrClass

_VERIFICATION = "1.2.840.10008.1.1"
_STORAGE_COMMITMENT = "1.2.840.10008.1.20.1"
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_ENCAPSULATED_PDF = "1.2.840.10008.5.1.4.1.1.104.1"
_SEGMENTATION = {SegmentationType.BINARY: "1.2.840.10008.5.1.4.1.1.66.4",
                 SegmentationType.LABELMAP: "1.2.840.10008.5.1.4.1.1.66.7"}
_MEASUREMENT = {MeasurementSrClass.COMPREHENSIVE_3D: "1.2.840.10008.5.1.4.1.1.88.34",
                MeasurementSrClass.COMPREHENSIVE: "1.2.840.10008.5.1.4.1.1.88.33"}
_TEXT = {TextSrClass.ENHANCED: "1.2.840.10008.5.1.4.1.1.88.22", TextSrClass.BASIC: "1.2.840.10008.5.1.4.1.1.88.11"}

_CONTENT = {
    ObjectKind.SEGMENTATION: "vertebral bodies, trabecular VOIs and their union on the source grid",
    ObjectKind.OTHER_VERTEBRAE: "bodies of the other vertebrae found",
    ObjectKind.MEASUREMENTS: "TID 1500: TID 1411 and TID 1410 groups per VOI; algorithm by TID 4019 per measurement",
    ObjectKind.REPORT: "TID 2000: readable report",
    ObjectKind.RADIOMICS: "TID 1500: 93 features per VOI with IBSI codes",
    ObjectKind.PDF: "one page for people",
    ObjectKind.PICTURE: "key picture",
    ObjectKind.REFUSAL: "TID 2000: not measured, and why",
    ObjectKind.PHANTOM_REPORT: "TID 2000: verdict on a phantom scan",
    ObjectKind.PHANTOM_CHART: "control chart of the calibration",
}


@dataclass(frozen=True, slots=True)
class StatusCode:
    """One C-STORE status: when the node sends it, or how the node reacts to it."""

    code: str
    meaning: str
    behaviour: str


SENT_STATUSES = (
    StatusCode("0000", "Success", "the instance and its database row are on disk"),
    StatusCode("A700", "Out of resources", "disk below its watermark or full; send again later"),
    StatusCode("A900", "Data set does not match SOP class", "SOP Class or Instance UID missing or not as announced"),
    StatusCode("C000", "Cannot understand", "data set unreadable; the association goes on"),
    StatusCode("0122", "SOP class not supported", "class not in the accepted list"),
)
RECEIVED_STATUSES = (
    StatusCode("0000", "Success", "delivered, or committed where storage commitment is used"),
    StatusCode("B000, B006, B007", "Warning", "stored; the warning is logged"),
    StatusCode("A7xx", "Out of resources", "tried again later with growing delays"),
    StatusCode("A9xx", "Data set does not match SOP class", "put aside at once; the operator is told"),
    StatusCode("Cxxx", "Cannot understand", "tried again, then put aside"),
    StatusCode("0122", "SOP class not supported", "the declared fallback form is sent, else put aside"),
)


@dataclass(frozen=True, slots=True)
class PeerFacts:
    """One destination."""

    name: str
    ae_title: str
    sop_class_uids: tuple[str, ...]
    storage_commitment: str
    tls: bool


@dataclass(frozen=True, slots=True)
class ConformanceFacts:
    """What the statement says about this installation; all of it comes from the running configuration."""

    ae_title: str
    port: int
    accepted_sop_class_uids: tuple[str, ...]
    accepted_transfer_syntax_uids: tuple[str, ...]
    settings: EncodingSettings = field(default_factory=EncodingSettings)
    destinations: tuple[PeerFacts, ...] = ()
    implementation_class_uid: str = ""
    implementation_version_name: str = ""
    max_pdu_bytes: int = 0
    max_associations: int = 0
    max_associations_per_peer: int = 0
    calling_ae_titles: tuple[str, ...] = ()
    tls_port: int | None = None
    tls_client_certificates: bool = False
    timezone: str = ""
    sent_statuses: tuple[StatusCode, ...] = SENT_STATUSES
    received_statuses: tuple[StatusCode, ...] = RECEIVED_STATUSES


def conformance_statement(facts: ConformanceFacts) -> str:
    """The statement as Markdown."""
    parts = (
        _cover(facts), _overview(facts), _introduction(), _implementation_model(facts), _services(facts),
        _configuration(facts), _network(facts), _character_sets(facts), _security(facts), _created_objects(facts),
        _attribute_mapping(), _private_codes(facts),
    )
    return "\n\n".join(parts) + "\n"


def created_sop_class_uid(kind: ObjectKind, settings: EncodingSettings) -> str:
    """SOP class that an object of this kind has under these settings."""
    if kind in (ObjectKind.SEGMENTATION, ObjectKind.OTHER_VERTEBRAE):
        return _SEGMENTATION[settings.segmentation_type]
    if kind in (ObjectKind.MEASUREMENTS, ObjectKind.RADIOMICS):
        return _MEASUREMENT[settings.measurement_sr_class]
    if kind in (ObjectKind.PICTURE, ObjectKind.PHANTOM_CHART):
        return _SECONDARY_CAPTURE
    return _ENCAPSULATED_PDF if kind is ObjectKind.PDF else _TEXT[settings.text_sr_class]


def _cover(facts: ConformanceFacts) -> str:
    settings = facts.settings
    return (
        f"# DICOM Conformance Statement\n\nProduct: {settings.model_name} {settings.software_version}  \n"
        f"Manufacturer: {settings.manufacturer}  \nUse: {settings.use_statement}\n\n"
        "Written by the software from its running configuration; order of sections after PS3.2 Annex N."
    )


def _overview(facts: ConformanceFacts) -> str:
    rows = [(_name(_VERIFICATION), _VERIFICATION, "yes", "yes")]
    created = {created_sop_class_uid(kind, facts.settings) for kind in facts.settings.objects}
    for uid in sorted(created | set(facts.accepted_sop_class_uids)):
        rows.append((_name(uid), uid, _yes(uid in created), _yes(uid in facts.accepted_sop_class_uids)))
    if any(peer.storage_commitment != "never" for peer in facts.destinations):
        rows.append((_name(_STORAGE_COMMITMENT), _STORAGE_COMMITMENT, "yes", "no"))
    table = _table(("SOP class", "UID", "user (SCU)", "provider (SCP)"), rows)
    return (
        "## 1 Conformance Statement Overview\n\nThe node receives CT studies and phantom scans, measures trabecular "
        f"bone density of lumbar vertebrae, and sends its results to PACS.\n\n### 1.1 Network services\n\n{table}"
        "\n\nMedia interchange, query/retrieve, worklist and web services: not supported."
    )


def _introduction() -> str:
    return (
        "## 2 Introduction\n\nFor those who connect the node to scanners and PACS. Conformance does not replace a "
        "test of the connection: `qct-node doctor` shows what each configured peer accepts. References: DICOM PS3.2 "
        "to PS3.16; IHE Radiology AI Results; the Image Biomarker Standardisation Initiative's reference manual."
    )


def _implementation_model(facts: ConformanceFacts) -> str:
    return (
        "## 3 Implementation Model\n\nOne application entity, "
        f"`{facts.ae_title}`, accepts associations for storage and opens them to deliver.\n\n"
        "Sequence: instances arrive; a study is complete when it has been quiet for the configured time; the series "
        "is analysed; the objects of section 9 go into an outbox; each destination receives them; storage commitment "
        "is asked for where configured. A late image gives a new version that names the objects it supersedes."
    )


def _services(facts: ConformanceFacts) -> str:
    accepted = _table(("SOP class accepted", "UID"), [(_name(uid), uid) for uid in facts.accepted_sop_class_uids])
    peers = [
        (peer.name, peer.ae_title, ", ".join(_name(uid) for uid in peer.sop_class_uids), peer.storage_commitment)
        for peer in facts.destinations
    ]
    sent = _table(("destination", "AE title", "SOP classes, in order of preference", "storage commitment"), peers)
    return (
        f"## 4 Service and Interoperability Description\n\n### 4.1 Storage as provider\n\n{accepted}\n\n"
        f"Level 2 (full): all attributes are kept, private ones too.\n\n### 4.2 Storage as user\n\n{sent}\n\n"
        "A destination that refuses a class gets the next form in its order; each such decision is recorded."
    )


def _configuration(facts: ConformanceFacts) -> str:
    rows = [
        ("AE title", f"`{facts.ae_title}`"), ("port", str(facts.port)), ("time zone", facts.timezone),
        ("UID root", facts.settings.uid_root),
        ("calling AE titles admitted", ", ".join(facts.calling_ae_titles) or "none"),
    ]
    return f"## 5 Configuration\n\nAll in `config.yaml`.\n\n{_table(('parameter', 'value'), rows)}"


def _network(facts: ConformanceFacts) -> str:
    rows = [
        ("application context", "1.2.840.10008.3.1.1.1"), ("maximum PDU, bytes", str(facts.max_pdu_bytes)),
        ("associations accepted at once", str(facts.max_associations)),
        ("of one peer", str(facts.max_associations_per_peer)), ("asynchronous operations", "not used"),
        ("Implementation Class UID", facts.implementation_class_uid),
        ("Implementation Version Name", facts.implementation_version_name),
    ]
    syntaxes = _table(("transfer syntax accepted", "UID"),
                      [(_name(uid), uid) for uid in facts.accepted_transfer_syntax_uids])
    return (
        f"## 6 Network and Media Communication Details\n\n### 6.1 Association policies\n\n"
        f"{_table(('policy', 'value'), rows)}\n\n### 6.2 Transfer syntaxes\n\n{syntaxes}\n\n"
        "Objects are sent in Explicit VR Little Endian, or Implicit VR Little Endian where the peer accepts only that."
        f"\n\n### 6.3 C-STORE statuses sent\n\n{_status_table(facts.sent_statuses)}"
        f"\n\n### 6.4 C-STORE statuses received\n\n{_status_table(facts.received_statuses)}"
    )


def _character_sets(facts: ConformanceFacts) -> str:
    return (
        "## 7 Support of Character Sets\n\nAny Specific Character Set of PS3.3 C.12.1.1.2 is received. Results carry "
        "the character set of their source; patient and study attributes are copied unchanged, and the node's own "
        f"words are ASCII. Language of reports: {codes.ENGLISH.meaning}."
    )


def _security(facts: ConformanceFacts) -> str:
    if facts.tls_port is None:
        incoming = "Incoming: no TLS port is configured."
    else:
        mutual = "client certificates required" if facts.tls_client_certificates else "server certificate only"
        incoming = f"Incoming: TLS 1.2 or newer on port {facts.tls_port} ({mutual})."
    outgoing = ", ".join(peer.name for peer in facts.destinations if peer.tls) or "none"
    return (
        f"## 8 Security\n\n{incoming} Outgoing with TLS: {outgoing}. Callers are admitted by AE title and address. "
        "User identity negotiation and digital signatures: not supported. Logs hold no patient name or ID."
    )


def _created_objects(facts: ConformanceFacts) -> str:
    rows = []
    for kind in sorted(facts.settings.objects):
        uid = created_sop_class_uid(kind, facts.settings)
        number = str(facts.settings.series_numbers.of(kind))
        rows.append((kind.value, _name(uid), uid, number, _CONTENT[kind]))
    table = _table(("object", "SOP class", "UID", "Series Number", "content"), rows)
    return (
        f"## 9 Annex: Created SOP Instances\n\n{table}\n\nOne instance per series. UIDs are derived from the source "
        "instances, the calibration, software and model versions and the configuration. SR: Completion Flag COMPLETE, "
        "Verification Flag UNVERIFIED, Preliminary Flag PRELIMINARY."
    )


def _attribute_mapping() -> str:
    rows = [
        ("Patient and General Study modules", "copied from the source; type 2 attributes empty when missing there"),
        ("Specific Character Set, Timezone Offset From UTC, Institution Name", "copied when present"),
        ("Frame of Reference UID", "SEG: copied; derived from the series when missing"),
        ("Referenced Request Sequence", "SR: from Request Attributes Sequence"),
        ("Contributing Equipment Sequence", "the scanner"),
        ("Manufacturer, Model Name, Software Versions, Device Serial Number, Station Name", "this node"),
        ("Predecessor Documents Sequence", "SR: the report that is superseded"),
    ]
    return f"## 10 Annex: Attribute Mapping\n\n{_table(('attributes of created objects', 'source'), rows)}"


def _private_codes(facts: ConformanceFacts) -> str:
    organisation = facts.settings.private_scheme_organisation
    rows = [(code.value, code.meaning) for code in private_codes()]
    return (
        f"## 11 Annex: Private Coding Scheme {codes.PRIVATE_SCHEME}\n\nResponsible: {organisation}. Private "
        f"attributes: none.\n\n{_table(('code', 'meaning'), rows)}"
    )


def private_codes() -> tuple[Code, ...]:
    """Every private code of `node.codes` and of its feature table, once, in order of definition."""
    found: list[Code] = []
    for value in vars(codes).values():
        found.extend(value.values() if isinstance(value, dict) else [value])
    found.extend(item.code for item in codes.feature_codes().values())
    known = (item for item in found if isinstance(item, Code))
    return tuple({code.value: code for code in known if code.scheme_designator == codes.PRIVATE_SCHEME}.values())


def _status_table(statuses: Iterable[StatusCode]) -> str:
    return _table(("status (hex)", "meaning", "behaviour"), [(s.code, s.meaning, s.behaviour) for s in statuses])


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    lines.extend(f"| {' | '.join(row)} |" for row in rows)
    return "\n".join(lines)


def _name(uid: str) -> str:
    return "Label Map Segmentation Storage" if uid == _SEGMENTATION[SegmentationType.LABELMAP] else UID(uid).name


def _yes(value: bool) -> str:
    return "yes" if value else "no"
