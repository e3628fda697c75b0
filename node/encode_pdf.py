"""One page for people -> Encapsulated PDF (PS3.3 A.45.1): table, picture with VOI, calibration chart, uncertainty."""

import highdicom as hd
from pydicom import Dataset
from pydicom.uid import EncapsulatedPDFStorage, ExplicitVRLittleEndian

from analysis.results import PatientResult
from node import codes
from node.encoded import EncodedObject, ObjectIdentity, ObjectKind
from node.encoding_task import EncodingTask
from node.report_page import report_page
from node.source_headers import ascii_text, finish


def encode_pdf(result: PatientResult, task: EncodingTask) -> EncodedObject:
    """The report page of a reported result as a DICOM object in the source's study."""
    identity = task.identity(ObjectKind.PDF, "QCT page")
    ds = _document(task, identity)
    pdf = report_page(result, task)
    ds.EncapsulatedDocument = pdf + b"\x00" * (len(pdf) % 2)
    ds.EncapsulatedDocumentLength = len(pdf)
    return EncodedObject(identity.kind, finish(ds, task.headers[0], identity))


def _document(task: EncodingTask, identity: ObjectIdentity) -> Dataset:
    source, settings = task.images[0], task.settings
    ds = hd.SOPClass(
        study_instance_uid=source.StudyInstanceUID, series_instance_uid=identity.series_instance_uid,
        series_number=identity.series_number, sop_instance_uid=identity.sop_instance_uid,
        sop_class_uid=EncapsulatedPDFStorage, instance_number=1, modality="DOC",
        manufacturer=ascii_text(settings.manufacturer), transfer_syntax_uid=ExplicitVRLittleEndian,
        patient_id=source.PatientID, series_description=identity.description,
        manufacturer_model_name=ascii_text(settings.model_name), software_versions=settings.software_version,
        device_serial_number=settings.device_serial_number,
    )
    ds.copy_patient_and_study_information(source)
    ds.ConversionType = "WSD"
    ds.BurnedInAnnotation = "NO"
    ds.AcquisitionDateTime = None
    ds.DocumentTitle = identity.description
    ds.ConceptNameCodeSequence = [hd.sr.CodedConcept.from_code(codes.REPORT_TITLE)]
    ds.MIMETypeOfEncapsulatedDocument = "application/pdf"
    return ds
