"""UIDs of everything we write: derived from inputs and versions, so that a repeated run gives the same objects.

What enters a UID: the source instances, the calibrations used, the configured limits, software and model versions,
the objects superseded, and the digest of the configuration. What does not: the clock, the host, measured values.
"""

import hashlib
from collections.abc import Iterable, Sequence

from pydicom import Dataset

from analysis.results import Calibration, PatientResult
from node.encoded import EncodingSettings, ObjectKind, Predecessor

_MAX_UID_LENGTH = 64  # PS3.5 section 9.1
_UUID_BITS = 128      # PS3.5 annex B.2: "2.25." is followed by a UUID as one decimal number


def derive_uid(root: str, parts: Iterable[str]) -> str:
    """A UID below `root` that depends on `parts` and their order only."""
    digest = hashlib.sha256("\x1f".join(parts).encode()).digest()
    if root == "2.25":
        return f"2.25.{int.from_bytes(digest, 'big') >> (256 - _UUID_BITS)}"
    room = _MAX_UID_LENGTH - len(root) - 1
    return f"{root}.{str(int.from_bytes(digest, 'big') | 1)[:min(room, 39)]}"


def patient_inputs(result: PatientResult, headers: Sequence[Dataset], predecessors: Sequence[Predecessor]) -> str:
    """Digest of all that decided on a patient result."""
    calibration: tuple[str, ...] = ()
    if result.chosen is not None:
        chosen = result.chosen
        calibration = (chosen.calibration.id, str(chosen.bracketing_id), f"{chosen.interpolation_weight:.6f}")
    limits = () if result.summary is None else tuple(str(limit) for limit in result.summary.limits_mg_cm3)
    versions = tuple(f"{model.name} {model.version} {model.sha256}" for model in result.models)
    rules = tuple(voi.rule_version for voi in result.vois)
    return _digest((
        result.header.series_instance_uid, result.status, result.software_version, *calibration, *limits, *versions,
        *rules, *_instances(headers), *(item.sop_instance_uid for item in predecessors),
    ))


def phantom_inputs(calibration: Calibration, headers: Sequence[Dataset]) -> str:
    """Digest of all that decided on a phantom scan's answer."""
    return _digest((calibration.id, calibration.software_version, *_instances(headers)))


def series_inputs(headers: Sequence[Dataset], software_version: str) -> str:
    """Digest for an answer that has no result behind it, such as a refusal."""
    return _digest((software_version, *_instances(headers)))


def object_uids(settings: EncodingSettings, kind: ObjectKind, inputs: str) -> tuple[str, str]:
    """(SOP Instance UID, Series Instance UID) of one object; they differ between SOP classes of the same content."""
    parts = (inputs, kind, *_form(settings, kind), settings.use_statement, settings.configuration_digest)
    return derive_uid(settings.uid_root, ("sop", *parts)), derive_uid(settings.uid_root, ("series", *parts))


def tracking_uid(settings: EncodingSettings, series_instance_uid: str, name: str) -> str:
    """UID of one tracked thing (a VOI, a vertebral body); stays the same when a result is amended."""
    return derive_uid(settings.uid_root, ("tracking", series_instance_uid, name))


def device_uid(settings: EncodingSettings) -> str:
    """UID of this installation as the observer of its reports (TID 1004)."""
    return derive_uid(settings.uid_root, ("device", settings.manufacturer, settings.model_name,
                                          settings.device_serial_number, settings.station_name))


def _form(settings: EncodingSettings, kind: ObjectKind) -> tuple[str, ...]:
    """The classes that decide on an object's content: its own and those of the objects that it refers to.

    A destination that takes another form of one object keeps the UIDs of the objects that do not depend on it.
    """
    if kind in (ObjectKind.SEGMENTATION, ObjectKind.OTHER_VERTEBRAE):
        return (settings.segmentation_type,)
    if kind in (ObjectKind.MEASUREMENTS, ObjectKind.RADIOMICS):
        return settings.segmentation_type, settings.measurement_sr_class
    if kind in (ObjectKind.PDF, ObjectKind.PICTURE, ObjectKind.PHANTOM_CHART):
        return ()
    return settings.segmentation_type, settings.measurement_sr_class, settings.text_sr_class


def _instances(headers: Sequence[Dataset]) -> list[str]:
    return sorted(str(ds.SOPInstanceUID) for ds in headers)


def _digest(parts: Iterable[str]) -> str:
    return hashlib.sha256("\x1f".join(parts).encode()).hexdigest()
