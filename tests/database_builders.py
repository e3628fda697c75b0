"""A real database on disk, and results in it."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from storage.database import SessionFactory, close_database, sqlite_url
from storage.outbox import Wanted, queue_result
from storage.schema import open_database
from storage.study_results import StoredObject, StudyOutcome, StudyResult, save_outcome

NOW = datetime(2026, 3, 2, 10, 0, tzinfo=UTC)
SEG = "1.2.840.10008.5.1.4.1.1.66.4"
SR_3D = "1.2.840.10008.5.1.4.1.1.88.34"
SR = "1.2.840.10008.5.1.4.1.1.88.33"
EXPLICIT = "1.2.840.10008.1.2.1"


@contextmanager
def database(folder: Path, name: str = "node.sqlite") -> Iterator[SessionFactory]:
    sessions = open_database(sqlite_url(folder / name))
    try:
        yield sessions
    finally:
        close_database(sessions)


def stored(kind: str, sop_class: str, uid: str, path: Path = Path("/none.dcm")) -> StoredObject:
    return StoredObject(kind, sop_class, uid, f"{uid}.9", EXPLICIT, path)


def outcome(study: str = "1.2.3", version: int = 1, **changes: object) -> StudyOutcome:
    values = {"kind": "PATIENT", "status": "reported", "series_instance_uid": f"{study}.1"}
    return StudyOutcome(study, version, **(values | changes))  # type: ignore[arg-type]


def report(
    sessions: SessionFactory, result: StudyOutcome, *wanted: Wanted, now: datetime = NOW
) -> tuple[StudyResult, bool]:
    """Save an outcome and queue its objects, as the worker does."""
    with sessions.begin() as session:
        saved, new = save_outcome(session, result, now)
        if new:
            queue_result(session, saved, wanted, now)
    return saved, new
