"""What every Structured Report of ours shares: observer, evidence, document class, and what highdicom leaves to do.

highdicom 0.28 writes containers as CONTINUOUS, which makes tree viewers drop the concept names, and Measurement Method
of a group with CONTAINS instead of HAS CONCEPT MOD (PS3.16 TID 1419 row 1); both are settled here.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import highdicom as hd
from highdicom.sr import (
    ContainerContentItem,
    ContentSequence,
    DeviceObserverIdentifyingAttributes,
    LanguageOfContentItemAndDescendants,
    ObservationContext,
    ObserverContext,
    TextContentItem,
)
from pydicom import Dataset
from pydicom.sr.codedict import codes as public_codes
from pydicom.sr.coding import Code
from pydicom.uid import UID, BasicTextSRStorage

from node import codes
from node.encoded import EncodedObject, MeasurementSrClass, ObjectIdentity, TextSrClass
from node.encoding_task import EncodingTask
from node.frame_references import name_frames
from node.result_uids import device_uid
from node.source_headers import ascii_text, finish, requested_procedures

_MEASUREMENT_CLASSES = {
    MeasurementSrClass.COMPREHENSIVE_3D: hd.sr.Comprehensive3DSR,
    MeasurementSrClass.COMPREHENSIVE: hd.sr.ComprehensiveSR,
}


@dataclass(frozen=True, slots=True)
class Section:
    """One heading of a readable report with its sentences."""

    heading: Code
    item: Code
    sentences: tuple[str, ...]


def observation_context(task: EncodingTask) -> ObservationContext:
    """Who observed: this installation, as a device (TID 1001, 1004)."""
    settings = task.settings
    attributes = DeviceObserverIdentifyingAttributes(
        uid=device_uid(settings), name=ascii_text(settings.station_name),
        manufacturer_name=ascii_text(settings.manufacturer), model_name=ascii_text(settings.model_name),
        serial_number=settings.device_serial_number,
    )
    return ObservationContext(observer_device_context=ObserverContext(public_codes.DCM.Device, attributes))


def text_item(name: Code, text: str) -> TextContentItem:
    return TextContentItem(name, ascii_text(text), hd.sr.RelationshipTypeValues.CONTAINS)


def measurement_document(
    content: Dataset, evidence: Sequence[Dataset], task: EncodingTask, identity: ObjectIdentity
) -> EncodedObject:
    """A TID 1500 tree -> Comprehensive 3D SR, or Comprehensive SR where configured."""
    document_class = _MEASUREMENT_CLASSES[task.settings.measurement_sr_class]
    return _document(document_class, content, evidence, task, identity)


def text_document(
    sections: Sequence[Section], evidence: Sequence[Dataset], task: EncodingTask, identity: ObjectIdentity
) -> EncodedObject:
    """Headings with sentences (TID 2000, depth 2) -> Enhanced SR, or Basic Text SR where configured."""
    encoded = _document(hd.sr.EnhancedSR, _text_tree(sections, task), evidence, task, identity)
    if task.settings.text_sr_class is TextSrClass.BASIC:  # the tree holds TEXT, CODE, PNAME and UIDREF items only
        encoded.dataset.SOPClassUID = BasicTextSRStorage
        encoded.dataset.file_meta.MediaStorageSOPClassUID = UID(BasicTextSRStorage)
    return encoded


def settle(content: Dataset) -> Dataset:
    """Make every container SEPARATE and Measurement Method a concept modifier, in the whole tree."""
    if content.ValueType == "CONTAINER":
        content.ContinuityOfContent = "SEPARATE"
    for item in content.get("ContentSequence") or ():
        if item.ConceptNameCodeSequence[0].CodeValue == codes.MEASUREMENT_METHOD.value:
            item.RelationshipType = "HAS CONCEPT MOD"
        settle(item)
    return content


def _document(
    document_class: type, content: Dataset, evidence: Sequence[Dataset], task: EncodingTask, identity: ObjectIdentity
) -> EncodedObject:
    settings = task.settings
    ds = document_class(
        evidence=[*task.images, *evidence], content=settle(content),
        series_instance_uid=identity.series_instance_uid, series_number=identity.series_number,
        sop_instance_uid=identity.sop_instance_uid, instance_number=1,
        manufacturer=ascii_text(settings.manufacturer), manufacturer_model_name=ascii_text(settings.model_name),
        software_versions=settings.software_version, device_serial_number=settings.device_serial_number,
        series_description=identity.description, is_complete=True,
        previous_versions=task.superseded(identity.kind), requested_procedures=requested_procedures(task.headers[0]),
        coding_schemes=codes.coding_schemes(settings.private_scheme_organisation, with_ibsi=True),
    )
    name_frames(ds, task.headers)
    return EncodedObject(identity.kind, finish(ds, task.headers[0], identity))


def _text_tree(sections: Sequence[Section], task: EncodingTask) -> ContainerContentItem:
    root = ContainerContentItem(codes.REPORT_TITLE, is_content_continuous=False, template_id="2000")
    root.ContentSequence = ContentSequence()
    root.ContentSequence.extend(LanguageOfContentItemAndDescendants(codes.ENGLISH))
    root.ContentSequence.extend(observation_context(task))
    for section in sections:
        if section.sentences:
            root.ContentSequence.append(_section(section))
    return root


def _section(section: Section) -> ContainerContentItem:
    container = ContainerContentItem(
        section.heading, is_content_continuous=False, relationship_type=hd.sr.RelationshipTypeValues.CONTAINS
    )
    container.ContentSequence = ContentSequence([text_item(section.item, text) for text in section.sentences])
    return container
