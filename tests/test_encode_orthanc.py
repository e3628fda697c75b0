"""Through a real archive: C-STORE into Orthanc, out again over DICOMweb, unchanged."""

from email.parser import BytesParser
from io import BytesIO

from pydicom import Dataset, dcmread
from pynetdicom import AE

from node.encode_results import encode_patient_result
from node.encoded import Attachments, EncodedObject, EncodingSettings, ObjectKind
from tests.orthanc import Orthanc, needs_orthanc, running_orthanc
from tests.result_builders import CREATED, make_headers, make_result
from tests.test_encode_report import make_png

pytestmark = needs_orthanc


def store(orthanc: Orthanc, objects: tuple[EncodedObject, ...]) -> list[int]:
    """C-STORE on one association; the statuses."""
    ae = AE("QCTNODE")
    for item in objects:
        ae.add_requested_context(item.dataset.SOPClassUID, item.dataset.file_meta.TransferSyntaxUID)
    association = ae.associate("127.0.0.1", orthanc.dicom_port, ae_title=orthanc.ae_title)
    assert association.is_established
    try:
        return [int(association.send_c_store(item.dataset).Status) for item in objects]
    finally:
        association.release()


def retrieve(orthanc: Orthanc, ds: Dataset) -> Dataset:
    """WADO-RS, one instance as multipart/related DICOM (PS3.18 10.4)."""
    path = (f"/dicom-web/studies/{ds.StudyInstanceUID}/series/{ds.SeriesInstanceUID}"
            f"/instances/{ds.SOPInstanceUID}")
    accept = 'multipart/related; type="application/dicom"; transfer-syntax=*'
    body = orthanc.get(path, accept)
    boundary = body[2:body.index(b"\r\n")].decode()
    message = BytesParser().parsebytes(
        f'Content-Type: multipart/related; boundary="{boundary}"\r\n\r\n'.encode() + body
    )
    (part,) = message.get_payload()
    return dcmread(BytesIO(part.get_payload(decode=True)))


def elements(ds: Dataset) -> Dataset:
    """The data set as it reads after a round trip through a file, without file meta."""
    buffer = BytesIO()
    ds.save_as(buffer)
    buffer.seek(0)
    read = Dataset()
    read.update(dcmread(buffer))
    return read


def content(ds: Dataset) -> list[tuple[object, ...]]:
    """(tag, VR, value). 8-bit Pixel Data may be OB or OW (PS3.5 A.2), and Orthanc turns the one into the other."""
    return [(e.tag, "OW" if e.keyword == "PixelData" else e.VR, e.value) for e in ds if e.tag.group != 2]


def test_all_objects_go_into_orthanc_and_come_out_of_dicomweb_unchanged(tmp_path) -> None:
    headers = make_headers()
    settings = EncodingSettings(objects=frozenset(ObjectKind))
    attachments = Attachments(make_png(), make_png(), CREATED)
    objects = encode_patient_result(make_result(headers), headers, settings, attachments=attachments)
    with running_orthanc(tmp_path) as orthanc:
        assert store(orthanc, objects) == [0x0000] * len(objects)
        for item in objects:
            returned = retrieve(orthanc, item.dataset)
            assert content(returned) == content(elements(item.dataset)), item.kind
