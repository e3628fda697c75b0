"""Bad objects through a real association: each gets a stated status, and its neighbours are stored all the same."""

import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import pytest
from pydicom import Dataset, Sequence, dcmwrite
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
    generate_uid,
)

from storage.instances import series_of_study
from tests.network_builders import CtSeriesSpec, RunningNode, ct_slice, running_node, series_spec
from tests.raw_peer import RawPeer

DEFLATED = DeflatedExplicitVRLittleEndian
STORED, INVALID_INSTANCE, MISMATCH, NOT_UNDERSTOOD, WRONG_CLASS, FAILURE = 0x0, 0x0117, 0xA900, 0xC000, 0x0122, 0x0110
UNDEFINED = 0xFFFFFFFF  # length
NESTING = 400  # deeper than Python's recursion limit allows pydicom to follow


@dataclass(frozen=True)
class Bad:
    """An object as sent: its bytes, the name in the command, the syntax, and the statuses that are right."""

    encoded: bytes
    expected: tuple[int, ...]
    sop_instance_uid: str | bytes = ""
    transfer_syntax_uid: str = ExplicitVRLittleEndian
    sop_class_uid: str = CTImageStorage


def encode(ds: Dataset, implicit: bool = False) -> bytes:
    buffer = DicomBytesIO()
    buffer.is_implicit_VR, buffer.is_little_endian = implicit, True
    write_dataset(buffer, ds)
    return bytes(buffer.getvalue())


def image() -> Dataset:
    return ct_slice(series_spec(), 0)


def without(keyword: str, *expected: int) -> Bad:
    ds = image()
    uid = str(ds.SOPInstanceUID)
    delattr(ds, keyword)
    return Bad(encode(ds), expected, uid)


def with_raw(keyword: str, value: bytes, *expected: int) -> Bad:
    """The element's value replaced by these bytes in the encoded data set."""
    ds = image()
    uid = str(ds.SOPInstanceUID)
    element = ds[keyword]
    value += b"\0" * (len(value) % 2)
    setattr(ds, keyword, None)
    encoded = encode(ds)
    head = struct.pack("<HH", element.tag.group, element.tag.elem) + element.VR.encode()
    position = encoded.index(head)
    return Bad(encoded[: position + 6] + struct.pack("<H", len(value)) + value + encoded[position + 8 :], expected, uid)


def named(uid: str | bytes, *expected: int) -> Bad:
    """A command that calls a good image by another name."""
    return Bad(encode(image()), expected, uid)


def cut(keep: float, *expected: int) -> Bad:
    encoded = encode(image())
    return Bad(encoded[: int(len(encoded) * keep)], expected)


def changed(change: Callable[[Dataset], None], *expected: int) -> Bad:
    ds = image()
    change(ds)
    return Bad(encode(ds), expected, str(ds.SOPInstanceUID))


def in_syntax(syntax: str, encoded: bytes, *expected: int) -> Bad:
    return Bad(encoded, expected, "", syntax)


def deflated(encoded: bytes) -> bytes:
    compressor = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return compressor.compress(encoded) + compressor.flush()


def deflate_bomb() -> Bad:
    """About 1 MB that expands to 1 GB of pixels."""
    compressor = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    ds = image()
    del ds.PixelData
    packed = compressor.compress(encode(ds) + struct.pack("<HH2sHI", 0x7FE0, 0x0010, b"OW", 0, 2**30))
    zeros = bytes(2**24)
    for _ in range(2**30 // len(zeros)):
        packed += compressor.compress(zeros)
    return Bad(packed + compressor.flush(), (NOT_UNDERSTOOD,), str(ds.SOPInstanceUID), DEFLATED)


def nested_sequences(depth: int, *expected: int) -> Bad:
    """Undefined-length sequences inside each other, before the patient module."""
    ds = image()
    uid = str(ds.SOPInstanceUID)
    opening = struct.pack("<HH2sHI", 0x0008, 0x1140, b"SQ", 0, 0xFFFFFFFF) + struct.pack(
        "<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF
    )
    closing = struct.pack("<HHI", 0xFFFE, 0xE00D, 0) + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    encoded = encode(ds)
    patient = encoded.index(struct.pack("<HH", 0x0010, 0x0010))
    return Bad(encoded[:patient] + opening * depth + closing * depth + encoded[patient:], expected, uid)


def many_items(count: int, *expected: int) -> Bad:
    return changed(
        lambda ds: setattr(ds, "ReferencedImageSequence", Sequence([Dataset() for _ in range(count)])), *expected
    )


def long_claim() -> Bad:
    """A header element that claims 4 GiB."""
    ds = image()
    encoded = encode(ds)
    at = encoded.index(struct.pack("<HH", 0x0010, 0x0010))
    claim = struct.pack("<HH2sHI", 0x0009, 0x1001, b"OB", 0, 0xFFFFFFF0)
    return Bad(encoded[:at] + claim + encoded[at:], (NOT_UNDERSTOOD,), str(ds.SOPInstanceUID))


def encapsulated_under_native() -> Bad:
    ds = image()
    encoded = encode(ds)
    head = encoded.index(struct.pack("<HH", 0x7FE0, 0x0010))
    item = struct.pack("<HHI", 0xFFFE, 0xE000, 0) + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    pixels = struct.pack("<HH2sHI", 0x7FE0, 0x0010, b"OB", 0, 0xFFFFFFFF) + item
    return Bad(encoded[:head] + pixels, (NOT_UNDERSTOOD,), str(ds.SOPInstanceUID))


def part10_file() -> Bad:
    ds = image()
    buffer = BytesIO()
    ds.file_meta = Dataset()  # type: ignore[assignment]
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dcmwrite(buffer, ds, enforce_file_format=True)
    return Bad(buffer.getvalue(), (NOT_UNDERSTOOD,), str(ds.SOPInstanceUID))


def wrong_class_in_data_set() -> Bad:
    return changed(lambda ds: setattr(ds, "SOPClassUID", "1.2.840.10008.5.1.4.1.1.4"), MISMATCH)


def command_of_another_class() -> Bad:
    ds = image()
    return Bad(encode(ds), (WRONG_CLASS,), str(ds.SOPInstanceUID), sop_class_uid="1.2.840.10008.5.1.4.1.1.4")


def private_class() -> Bad:
    ds = image()
    return Bad(encode(ds), (WRONG_CLASS,), str(ds.SOPInstanceUID), sop_class_uid="1.3.12.2.1107.5.9.1")


def set_to(**values: object) -> Callable[[Dataset], None]:
    def change(ds: Dataset) -> None:
        for keyword, value in values.items():
            setattr(ds, keyword, value)

    return change


CASES: dict[str, Callable[[], Bad]] = {
    "no Study Instance UID": lambda: without("StudyInstanceUID", INVALID_INSTANCE),
    "no Series Instance UID": lambda: without("SeriesInstanceUID", INVALID_INSTANCE),
    "no SOP Instance UID": lambda: without("SOPInstanceUID", INVALID_INSTANCE),
    "no SOP Class UID": lambda: without("SOPClassUID", INVALID_INSTANCE),
    "no pixels": lambda: without("PixelData", NOT_UNDERSTOOD),
    "no rows": lambda: without("Rows", NOT_UNDERSTOOD),
    "no position": lambda: without("ImagePositionPatient", STORED),
    "empty Study Instance UID": lambda: with_raw("StudyInstanceUID", b"", INVALID_INSTANCE),
    "path as Study Instance UID": lambda: with_raw("StudyInstanceUID", b"../../../../tmp/evil", INVALID_INSTANCE),
    "path as Series Instance UID": lambda: with_raw("SeriesInstanceUID", b"/etc/passwd", INVALID_INSTANCE),
    "path as SOP Instance UID": lambda: with_raw("SOPInstanceUID", b"..\\..\\evil", INVALID_INSTANCE),
    "path in the command": lambda: named("../../../evil", INVALID_INSTANCE),
    "letters in the command": lambda: named("1.2.abc", INVALID_INSTANCE),
    "80 digits in the command": lambda: named("1." + "9" * 78, INVALID_INSTANCE),
    "no name in the command": lambda: named(b"\0", NOT_UNDERSTOOD),
    "not ASCII in the command": lambda: named(b"1.2.\xff\xfe", INVALID_INSTANCE),
    "shell characters in the command": lambda: named("1.2;rm -rf $HOME", INVALID_INSTANCE),
    "another name in the command": lambda: named(generate_uid(), MISMATCH),
    "another class in the data set": wrong_class_in_data_set,
    "command of another class": command_of_another_class,
    "command of a private class": private_class,
    "command without a class": lambda: Bad(encode(image()), (FAILURE,), generate_uid(), sop_class_uid=""),
    "empty data set": lambda: Bad(b"", (NOT_UNDERSTOOD,)),
    "one byte": lambda: Bad(b"\x08", (NOT_UNDERSTOOD,)),
    "noise": lambda: Bad(bytes(range(256)) * 40, (NOT_UNDERSTOOD,)),
    "text": lambda: Bad(b"GET / HTTP/1.1\r\nHost: node\r\n\r\n", (NOT_UNDERSTOOD,)),
    "cut in the header": lambda: cut(0.3, NOT_UNDERSTOOD, INVALID_INSTANCE),
    "cut in the pixels": lambda: cut(0.9, NOT_UNDERSTOOD),
    "a whole file with its meta header": part10_file,
    "implicit bytes under explicit": lambda: Bad(encode(image(), implicit=True), (NOT_UNDERSTOOD,)),
    "explicit bytes under implicit": lambda: in_syntax(ImplicitVRLittleEndian, encode(image()), NOT_UNDERSTOOD),
    "native pixels under RLE": lambda: in_syntax(RLELossless, encode(image()), NOT_UNDERSTOOD),
    "encapsulated pixels under explicit": encapsulated_under_native,
    "undeflated bytes under deflated": lambda: in_syntax(DEFLATED, encode(image()), NOT_UNDERSTOOD),
    "cut deflated stream": lambda: in_syntax(DEFLATED, deflated(encode(image()))[:200], NOT_UNDERSTOOD),
    "deflate bomb": deflate_bomb,
    "rows say more than the pixels": lambda: changed(set_to(Rows=512), NOT_UNDERSTOOD),
    "element that claims 4 GiB": long_claim,
    "sequences nested 400 deep": lambda: nested_sequences(NESTING, STORED),
    "sequence of 10000 items": lambda: many_items(10_000, STORED),
    "NaN rescale": lambda: with_raw("RescaleSlope", b"NaN", STORED),
    "infinite position": lambda: with_raw("ImagePositionPatient", b"inf\\0\\0", STORED),
    "words as position": lambda: with_raw("ImagePositionPatient", b"a\\b\\c", STORED),
    "instance number beyond 32 bits": lambda: with_raw("InstanceNumber", b"99999999999", STORED),
    "Patient ID of 1000 characters": lambda: with_raw("PatientID", b"7" * 1000, STORED),
    "unknown character set": lambda: with_raw("SpecificCharacterSet", b"ISO_IR 999", STORED),
    "bytes outside the character set": lambda: with_raw("PatientID", b"\xc3\x28\xff", STORED),
    "localizer": lambda: changed(set_to(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]), STORED),
}  # fmt: skip


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNode]:
    with running_node(tmp_path_factory.mktemp("bad")) as running:
        yield running


def test_there_are_enough_bad_files() -> None:
    assert len(CASES) >= 30


@pytest.mark.parametrize("case", CASES)
def test_a_bad_object_gets_its_status_and_its_neighbours_are_stored(node: RunningNode, case: str) -> None:
    bad = CASES[case]()
    spec = series_spec(slices=2)
    with RawPeer(node.port, bad.transfer_syntax_uid) as peer:
        before = _store_good(peer, spec, 0, bad)
        reply = peer.store(bad.sop_instance_uid or _name_in(bad), bad.encoded, bad.sop_class_uid)
        after = _store_good(peer, spec, 1, bad)
        assert peer.echo() == 0
        assert peer.release() == 6
    assert reply.status in bad.expected, f"0x{reply.status:04X} {reply.comment}"
    assert (reply.status == STORED) == (reply.comment == ""), "a refusal says why"
    assert before == after == STORED
    with node.sessions.begin() as session:
        (series,) = series_of_study(session, spec.study_uid)
    assert len(series.instances) == 2


def test_nothing_of_a_refused_object_stays_and_nothing_leaves_the_inbox(node: RunningNode) -> None:
    with node.sessions.begin() as session:
        connection = session.connection()
        known = {row[0] for row in connection.exec_driver_sql("SELECT path FROM instances")}
    assert set(node.inbox.stored_paths()) == known
    assert not list(node.inbox.incoming.iterdir())
    assert not list(Path(node.inbox.root).parent.glob("**/*evil*"))


def _store_good(peer: RawPeer, spec: CtSeriesSpec, index: int, bad: Bad) -> int:
    """A good image in the syntax of the association that the bad one uses."""
    ds = ct_slice(spec, index)
    if bad.transfer_syntax_uid == RLELossless:
        ds.file_meta = Dataset()  # type: ignore[assignment]
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        ds.compress(RLELossless, generate_instance_uid=False)
    encoded = encode(ds, implicit=bad.transfer_syntax_uid == ImplicitVRLittleEndian)
    if bad.transfer_syntax_uid == DEFLATED:
        encoded = deflated(encoded)
    return peer.store(str(ds.SOPInstanceUID), encoded).status


def _name_in(bad: Bad) -> str:
    """The name that stands in the bytes, where there is one; else any."""
    marker = struct.pack("<HH2s", 0x0008, 0x0018, b"UI")
    if marker not in bad.encoded:
        return str(generate_uid())
    at = bad.encoded.index(marker) + 6
    (length,) = struct.unpack_from("<H", bad.encoded, at)
    return bad.encoded[at + 2 : at + 2 + length].rstrip(b"\0").decode()
