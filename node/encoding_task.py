"""One study's worth of encoding: everything that the encoders of single objects share."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from pydicom import Dataset

from node.encoded import Attachments, EncodingSettings, ObjectIdentity, ObjectKind, Predecessor
from node.result_uids import object_uids, tracking_uid
from node.source_headers import ascii_text, source_images

_LONG_STRING_LENGTH = 64  # VR LO, PS3.5 section 6.2


@dataclass(frozen=True, slots=True, eq=False)
class EncodingTask:
    """headers : the source slices as received, in the order of the volume's first axis
    images : their lean copies that highdicom accepts, in the same order
    inputs : digest of all that decided on the result; enters every UID
    """

    headers: tuple[Dataset, ...]
    images: tuple[Dataset, ...]
    settings: EncodingSettings
    inputs: str
    created: datetime
    predecessors: tuple[Predecessor, ...] = ()
    attachments: Attachments = Attachments()

    @property
    def series_instance_uid(self) -> str:
        return str(self.headers[0].SeriesInstanceUID)

    def identity(self, kind: ObjectKind, name: str, part: int = 0) -> ObjectIdentity:
        """UIDs, number and description of the object; `part` counts objects of one kind, each in its own series."""
        inputs = self.inputs if part == 0 else f"{self.inputs} part {part}"
        sop_instance_uid, series_instance_uid = object_uids(self.settings, kind, inputs)
        description = ascii_text(f"{name}: {self.settings.use_statement}")[:_LONG_STRING_LENGTH]
        number = self.settings.series_numbers.of(kind) + 100 * part
        return ObjectIdentity(
            kind, sop_instance_uid, series_instance_uid, number, description, self.created, self.settings
        )

    def tracking_uid(self, name: str) -> str:
        return tracking_uid(self.settings, self.series_instance_uid, name)

    def superseded(self, kind: ObjectKind) -> list[Dataset] | None:
        """Earlier objects of this kind as highdicom wants them; None when there are none."""
        found = [_as_dataset(item) for item in self.predecessors if item.kind == kind]
        return found or None


def make_task(
    headers: Sequence[Dataset], settings: EncodingSettings, inputs: str,
    predecessors: Sequence[Predecessor] = (), attachments: Attachments | None = None,
) -> EncodingTask:
    attachments = attachments or Attachments()
    created = attachments.created or datetime.now().astimezone()
    images = tuple(source_images(headers, settings))
    return EncodingTask(tuple(headers), images, settings, inputs, created, tuple(predecessors), attachments)


def _as_dataset(item: Predecessor) -> Dataset:
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID = item.sop_class_uid, item.sop_instance_uid
    ds.StudyInstanceUID, ds.SeriesInstanceUID = item.study_instance_uid, item.series_instance_uid
    return ds
