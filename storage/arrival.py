"""One received instance as a value, and the rows that it becomes."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from storage.instance_header import InstanceHeader


@dataclass(frozen=True, slots=True)
class Sender:
    """The association that an instance came by."""

    association_id: str
    calling_ae_title: str
    called_ae_title: str
    peer_address: str
    opened_at: datetime


@dataclass(frozen=True, slots=True)
class Arrival:
    """One instance, durable on disk, whose row is to be written."""

    header: InstanceHeader
    transfer_syntax_uid: str
    digest: str
    path: str  # relative to the inbox root
    size_bytes: int
    sender: Sender
    arrived_at: datetime


def association_values(sender: Sender) -> dict[str, Any]:
    return {
        "id": sender.association_id,
        "calling_ae_title": sender.calling_ae_title,
        "called_ae_title": sender.called_ae_title,
        "peer_address": sender.peer_address,
        "opened_at": sender.opened_at,
        "closed_at": None,
        "ending": None,
    }


def study_values(arrival: Arrival) -> dict[str, Any]:
    header = arrival.header
    return {
        "study_instance_uid": header.study_instance_uid,
        "patient_id": header.patient_id,
        "accession_number": header.accession_number,
        "study_description": header.study_description,
        "version": 1,
        "taken_version": 0,
        "version_opened_at": arrival.arrived_at,
        "first_arrival_at": arrival.arrived_at,
        "last_arrival_at": arrival.arrived_at,
        "delivered_version": 0,
        "delivered_at": None,
        "released_version": 0,
        "conflict": None,
    }


def series_values(arrival: Arrival) -> dict[str, Any]:
    header = arrival.header
    return {
        "study_instance_uid": header.study_instance_uid,
        "series_instance_uid": header.series_instance_uid,
        "modality": header.modality,
        "series_description": header.series_description,
        "calling_ae_title": arrival.sender.calling_ae_title,
    }


def instance_values(arrival: Arrival, study_version: int) -> dict[str, Any]:
    header = arrival.header
    return {
        "sop_instance_uid": header.sop_instance_uid,
        "study_instance_uid": header.study_instance_uid,
        "series_instance_uid": header.series_instance_uid,
        "sop_class_uid": header.sop_class_uid,
        "transfer_syntax_uid": arrival.transfer_syntax_uid,
        "digest": arrival.digest,
        "path": arrival.path,
        "size_bytes": arrival.size_bytes,
        "image_type": "\\".join(header.image_type),
        "instance_number": header.instance_number,
        "number_of_frames": header.number_of_frames,
        "slice_position_mm": header.slice_position_mm,
        "orientation": header.orientation,
        "association_id": arrival.sender.association_id,
        "study_version": study_version,
        "arrived_at": arrival.arrived_at,
        "purged_at": None,
    }
