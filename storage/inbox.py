"""The inbox: received instances as DICOM files (PS3.10), each either complete and durable or not there at all.

Layout below the root, all on one file system:

    incoming/    files while they are received, unique names; emptied at start
    studies/     one folder per study, one file per instance, names from digests: no text of a peer becomes a path
    quarantine/  second, different copies of an instance that is already kept, for the operator

An instance is durable after `IncomingFile.finish` (fsync of the file), `Inbox.place` (rename) and
`Inbox.sync_folder_of` (fsync of its folder); the database row follows, and only then Success is answered.
"""

import hashlib
import os
import shutil
import struct
import threading
import time
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

# made once with uuid4 (PS3.5 B.2); stands in the meta header of every file that this node writes
IMPLEMENTATION_CLASS_UID = "2.25.138334235982746445881436096026109240961"
IMPLEMENTATION_VERSION_NAME = "QCT_NODE"
WRITE_BUFFER_BYTES = 64 * 1024  # longer fragments go straight to the file
HEAD_BYTES = 64 * 1024  # of the data set, kept in memory: its header is not read back from the file
DISK_STATE_LIFE_S = 0.5  # statvfs is asked at most this often


@dataclass(frozen=True, slots=True)
class DiskLimits:
    """When the node refuses images because its disk is nearly full."""

    refuse_below_free_bytes: int = 5 * 2**30  # new storage associations are refused below this
    refuse_above_used_fraction: float = 0.95  # ... and above this
    stop_below_free_bytes: int = 128 * 2**20  # every image is refused below this: the database needs the room


@dataclass(frozen=True, slots=True)
class DiskState:
    free_bytes: int
    used_fraction: float
    refuses_associations: str | None  # the reason in words; None: room enough
    refuses_instances: str | None


@dataclass(frozen=True, slots=True)
class ObjectNames:
    """What names a received object: taken from the command set, checked against the data set later."""

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    source_ae_title: str = ""


class IncomingFile:
    """One instance while it is received: written to a temporary file, digested on the way, never held in memory.

    A failed write is kept in `error` and the file is removed at once, so that the rest of the data set can be drained
    and answered with a status.
    """

    def __init__(self, path: Path, names: ObjectNames) -> None:
        self.path = path
        self.names = names
        self.data_bytes = 0
        self.head = b""  # the first bytes of the data set
        self.placed = False
        self.error: OSError | None = None
        self._digest = hashlib.sha256(names.transfer_syntax_uid.encode())
        self._file: BinaryIO | None = None
        meta = file_meta(names)
        self.data_offset = len(meta)
        try:
            self._file = path.open("xb", buffering=WRITE_BUFFER_BYTES)
            self._file.write(meta)
        except OSError as exc:
            self._fail(exc)

    def write(self, fragment: bytes | memoryview) -> None:
        """Append a fragment of the encoded data set."""
        self.data_bytes += len(fragment)
        if self._file is None:
            return
        if len(self.head) < HEAD_BYTES:
            self.head += fragment[: HEAD_BYTES - len(self.head)]
        self._digest.update(fragment)
        try:
            self._file.write(fragment)
        except OSError as exc:
            self._fail(exc)

    def finish(self) -> None:
        """Make the content durable (flush, fsync, close); a failure stands in `error`."""
        if self._file is None:
            return
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            self._file = None
        except OSError as exc:
            self._fail(exc)

    def discard(self) -> None:
        """Remove the temporary file; harmless when it has been placed or discarded already."""
        self._close()
        if not self.placed:
            self.path.unlink(missing_ok=True)

    @property
    def digest(self) -> str:
        """SHA-256 over transfer syntax and encoded data set, hexadecimal: equal means the same bytes."""
        return self._digest.hexdigest()

    def _fail(self, exc: OSError) -> None:
        self.error = exc
        self.discard()

    def _close(self) -> None:
        file, self._file = self._file, None
        if file is None:
            return
        raw = getattr(file, "raw", None)
        try:
            file.close()  # flushes, which fails again on a full disk
        except OSError:
            if raw is not None:
                raw.close()


class Inbox:
    """The folder tree of received instances."""

    def __init__(self, root: Path, limits: DiskLimits | None = None) -> None:
        self.root = root
        self.limits = limits or DiskLimits()
        self.incoming = root / "incoming"
        self.studies = root / "studies"
        self.quarantined = root / "quarantine"
        for folder in (self.incoming, self.studies, self.quarantined):
            folder.mkdir(parents=True, exist_ok=True)
        self._disk_lock = threading.Lock()
        self._disk: tuple[float, DiskState] | None = None

    def receive(self, names: ObjectNames) -> IncomingFile:
        """A new temporary file; its name is unique even when one instance is received twice at once."""
        return IncomingFile(self.incoming / f"{uuid.uuid4().hex}.part", names)

    def relative_path(self, study_instance_uid: str, sop_instance_uid: str, digest: str) -> str:
        """Where an instance lies, relative to the root; the same bytes always get the same path."""
        return f"studies/{_short_hash(study_instance_uid)}/{_short_hash(sop_instance_uid)}-{digest[:16]}.dcm"

    def place(self, incoming: IncomingFile, relative_path: str) -> None:
        """Rename a finished file to its place; replaces a file of the same bytes. OSError when the disk refuses."""
        target = f"{self.root}/{relative_path}"
        while True:
            try:
                incoming.path.rename(target)
                incoming.placed = True
                return
            except FileNotFoundError:  # the study's folder is new, or was removed just now with its last file
                if not incoming.path.exists():
                    raise
                Path(target).parent.mkdir(parents=True, exist_ok=True)
                sync_folder(self.studies)

    def sync_folder_of(self, relative_path: str) -> None:
        """Make a rename durable. Several at once share a commit of the file system's journal."""
        sync_folder(f"{self.root}/{relative_path.rpartition('/')[0]}")

    def quarantine(self, path: Path, sop_instance_uid: str) -> Path:
        """Move a file aside for the operator; never overwrites an earlier one."""
        target = self.quarantined / f"{_short_hash(sop_instance_uid)}-{uuid.uuid4().hex[:8]}.dcm"
        path.rename(target)
        sync_folder(self.quarantined)
        return target

    def remove_quarantined(self, relative_path: str) -> None:
        """Remove one file that was put aside; its folder stays."""
        (self.root / relative_path).unlink(missing_ok=True)

    def sweep_incoming(self) -> int:
        """Remove what a crash left half received (never acknowledged); returns how many files."""
        leftovers = list(self.incoming.iterdir())
        for path in leftovers:
            path.unlink(missing_ok=True)
        return len(leftovers)

    def stored_paths(self) -> Iterator[str]:
        """Relative paths of all files below `studies/`, in order."""
        for folder in sorted(self.studies.iterdir()):
            yield from (f"studies/{folder.name}/{file.name}" for file in sorted(folder.glob("*.dcm")))

    def remove(self, relative_paths: Iterable[str]) -> int:
        """Remove files of delivered studies and the folders that become empty; returns the bytes freed."""
        freed = 0
        folders = set()
        for relative_path in relative_paths:
            path = self.root / relative_path
            if path.exists():
                freed += path.stat().st_size
                path.unlink()
            folders.add(path.parent)
        for folder in folders:
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
        return freed

    def disk_state(self) -> DiskState:
        """Free room and what is refused for lack of it; asked of the file system at most every half second."""
        with self._disk_lock:
            now = time.monotonic()
            if self._disk is None or now - self._disk[0] > DISK_STATE_LIFE_S:
                self._disk = (now, disk_state_of(self.root, self.limits))
            return self._disk[1]


def disk_state_of(folder: Path, limits: DiskLimits) -> DiskState:
    """Ask the file system that holds the folder."""
    return judge_disk(*shutil.disk_usage(folder), limits)


def judge_disk(total_bytes: int, used_bytes: int, free_bytes: int, limits: DiskLimits) -> DiskState:
    """Compare the room on the disk with the limits; used fraction counts what the node may write to."""
    used_fraction = used_bytes / max(used_bytes + free_bytes, 1)
    refuses = None
    if free_bytes < limits.refuse_below_free_bytes:
        refuses = f"{free_bytes / 2**30:.1f} GiB free, {limits.refuse_below_free_bytes / 2**30:.1f} GiB must stay free"
    elif used_fraction > limits.refuse_above_used_fraction:
        refuses = f"disk {used_fraction:.0%} full, limit {limits.refuse_above_used_fraction:.0%}"
    stops = None
    if free_bytes < limits.stop_below_free_bytes:
        stops = f"{free_bytes / 2**20:.0f} MiB free, {limits.stop_below_free_bytes / 2**20:.0f} MiB must stay free"
    return DiskState(free_bytes, used_fraction, refuses, stops)


def file_meta(names: ObjectNames) -> bytes:
    """Preamble and File Meta Information (PS3.10 7.1), explicit VR little endian."""
    elements = struct.pack("<HH2sHI2s", 0x0002, 0x0001, b"OB", 0, 2, b"\0\1")
    elements += _short_element(0x0002, b"UI", names.sop_class_uid)
    elements += _short_element(0x0003, b"UI", names.sop_instance_uid)
    elements += _short_element(0x0010, b"UI", names.transfer_syntax_uid)
    elements += _short_element(0x0012, b"UI", IMPLEMENTATION_CLASS_UID)
    elements += _short_element(0x0013, b"SH", IMPLEMENTATION_VERSION_NAME)
    if names.source_ae_title:
        elements += _short_element(0x0016, b"AE", names.source_ae_title)
    group_length = struct.pack("<HH2sHI", 0x0002, 0x0000, b"UL", 4, len(elements))
    return bytes(128) + b"DICM" + group_length + elements


def _short_element(element: int, vr: bytes, text: str) -> bytes:
    value = text.encode("ascii", "replace")
    value += (b"\0" if vr == b"UI" else b" ") * (len(value) % 2)
    return struct.pack("<HH2sH", 0x0002, element, vr, len(value)) + value


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def sync_folder(folder: Path | str) -> None:
    """fsync of a folder: makes the names in it durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
