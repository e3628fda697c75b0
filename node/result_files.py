"""Encoded results on disk, durable before the ledger names them: one folder per study below the results folder."""

import os
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path

from pydicom import dcmwrite

from node.encoded import EncodedObject
from storage.inbox import sync_folder
from storage.study_results import StoredObject


def store_objects(objects: Iterable[EncodedObject], folder: Path) -> tuple[StoredObject, ...]:
    """Write each object under a temporary name, fsync, rename; names are SOP Instance UIDs, which hold no identity."""
    folder.mkdir(parents=True, exist_ok=True)
    stored = tuple(_store(item, folder) for item in objects)
    sync_folder(folder)
    return stored


def _store(item: EncodedObject, folder: Path) -> StoredObject:
    ds = item.dataset
    buffer = BytesIO()
    dcmwrite(buffer, ds, enforce_file_format=True)
    path = folder / f"{ds.SOPInstanceUID}.dcm"
    write_durably(path, buffer.getvalue())
    return StoredObject(
        str(item.kind),
        str(ds.SOPClassUID),
        str(ds.SOPInstanceUID),
        str(ds.SeriesInstanceUID),
        str(ds.file_meta.TransferSyntaxUID),
        path,
    )


def write_durably(path: Path, content: bytes) -> None:
    temporary = path.with_suffix(".part")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
