"""What a start does after a crash: half received files go, files without a row are taken in, associations are closed.

A file below `studies/` without a row was durable but not yet acknowledged. It is kept and recorded, never removed: the
database may also be an older copy that someone restored.
"""

import hashlib
import logging
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_file_meta_info

from storage.arrival import Arrival, Sender
from storage.database import SessionFactory
from storage.inbox import Inbox
from storage.instance_header import (
    EncodedDataset,
    InvalidUidError,
    UnreadableInstanceError,
    read_instance_header,
)
from storage.instances import close_association, known_paths, recover_at_start
from storage.received_tables import AssociationEnding
from storage.recording import record_arrivals

LOGGER = logging.getLogger(__name__)
GROUP = 64  # files per transaction
META_PREFIX_BYTES = 132 + 12  # preamble, "DICM" and the group length element


@dataclass(frozen=True, slots=True)
class Recovery:
    removed_temporary_files: int
    lost_associations: int
    adopted_files: int
    unreadable_files: int


def recover(sessions: SessionFactory, inbox: Inbox, now: datetime) -> Recovery:
    """Bring inbox and database into agreement; called once, before the first association is accepted."""
    removed = inbox.sweep_incoming()
    with sessions.begin() as session:
        lost = recover_at_start(session, now)
        known = known_paths(session)
    orphans = [path for path in inbox.stored_paths() if path not in known]
    arrivals = [found for path in orphans if (found := _as_arrival(inbox, path, now)) is not None]
    for start in range(0, len(arrivals), GROUP):
        with sessions.begin() as session:
            connection = session.connection()
            record_arrivals(connection, arrivals[start : start + GROUP])
            for arrival in arrivals[start : start + GROUP]:
                close_association(connection, arrival.sender.association_id, AssociationEnding.LOST, now)
    result = Recovery(removed, lost, len(arrivals), len(orphans) - len(arrivals))
    if any((removed, lost, orphans)):
        LOGGER.warning("after an unclean stop: %s", result)
    return result


def _as_arrival(inbox: Inbox, relative_path: str, now: datetime) -> Arrival | None:
    path = inbox.root / relative_path
    try:
        source, ae_title = _locate_dataset(path)
        header = read_instance_header(source)
    except (OSError, ValueError, AttributeError, InvalidDicomError, UnreadableInstanceError, InvalidUidError) as exc:
        LOGGER.error("file %s has no row and cannot be read: %s", relative_path, exc)
        return None
    return Arrival(
        header=header,
        transfer_syntax_uid=source.transfer_syntax_uid,
        digest=_digest(source),
        path=relative_path,
        size_bytes=path.stat().st_size,
        sender=Sender(f"recovered-{now:%Y%m%dT%H%M%S%f}", ae_title, "", "", now),
        arrived_at=now,
    )


def _locate_dataset(path: Path) -> tuple[EncodedDataset, str]:
    meta = read_file_meta_info(path)
    offset = META_PREFIX_BYTES + int(meta.FileMetaInformationGroupLength)
    source = EncodedDataset(path, offset, str(meta.TransferSyntaxUID), str(meta.MediaStorageSOPClassUID))
    return source, str(meta.get("SourceApplicationEntityTitle", ""))


def _digest(source: EncodedDataset) -> str:
    """The same digest as `IncomingFile.digest`."""
    digest = hashlib.sha256(source.transfer_syntax_uid.encode())
    with source.path.open("rb") as file:
        file.seek(source.offset)
        while piece := file.read(2**20):
            digest.update(piece)
    return digest.hexdigest()
