"""Push a folder of DICOM files to an application entity, as `qct-node send` and the demonstration do."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from pydicom import dcmread
from pydicom.errors import InvalidDicomError
from pydicom.uid import UID
from pynetdicom import AE, Association, build_context

from analysis.errors import DeliveryError
from node.reactor_pause import pause_for_real

MAXIMUM_CONTEXTS = 128  # of one association, PS3.8 9.3.2


@dataclass(frozen=True, slots=True)
class Peer:
    """An application entity to talk to."""

    host: str
    port: int
    ae_title: str
    calling_ae_title: str = "QCT-NODE"


@dataclass(frozen=True, slots=True)
class SentFolder:
    sent: int
    failed: tuple[tuple[Path, str], ...]


def dicom_files(folder: Path) -> dict[Path, tuple[UID, UID]]:
    """Path -> (SOP class, transfer syntax) of every DICOM file below a folder."""
    found = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        try:
            meta = dcmread(path, stop_before_pixels=True, specific_tags=["SOPClassUID"])
        except InvalidDicomError:
            continue
        found[path] = (UID(meta.SOPClassUID), UID(meta.file_meta.TransferSyntaxUID))
    return found


def send_folder(folder: Path, peer: Peer, progress: Callable[[Path], None] = lambda path: None) -> SentFolder:
    """C-STORE every DICOM file of the folder in one association.

    Raises
    ------
    DeliveryError : no file, or the peer refuses or breaks off the association
    """
    files = dicom_files(folder)
    if not files:
        raise DeliveryError(f"no DICOM file found in {folder}", permanent=True)
    association = _associate(peer, files.values())
    try:
        failed = tuple((path, why) for path in files if (why := _store(association, path, progress)))
    finally:
        association.release()
    return SentFolder(len(files) - len(failed), failed)


def _associate(peer: Peer, contexts: Iterable[tuple[UID, UID]]) -> Association:
    ae = AE(ae_title=peer.calling_ae_title)
    wanted = [build_context(sop_class, syntax) for sop_class, syntax in sorted(set(contexts))]
    association = ae.associate(peer.host, peer.port, ae_title=peer.ae_title, contexts=wanted[:MAXIMUM_CONTEXTS])
    if not association.is_established:
        raise DeliveryError(
            f"{peer.ae_title} at {peer.host}:{peer.port} did not accept the association", permanent=False
        )
    return pause_for_real(association)


def _store(association: Association, path: Path, progress: Callable[[Path], None]) -> str | None:
    """None when stored, else why not."""
    if not association.is_established:
        return "the association is gone"
    try:
        status = association.send_c_store(path)
    except (ValueError, RuntimeError, AttributeError) as error:
        return str(error)
    progress(path)
    code = status.get("Status")
    return None if code is not None and (code == 0 or code & 0xF000 == 0xB000) else f"status {code!r}"
