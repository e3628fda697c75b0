"""Questions to the set-up before the first study asks them: each PACS, disk, clock, models, database, our own port."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum

from pydicom.uid import UID, ExplicitVRLittleEndian
from rich.console import Console
from rich.table import Table

from analysis.errors import DatabaseError, DeliveryError, ModelError
from node.config import Config
from node.destinations import SOP_CLASS_UIDS, CommitmentUse, Destination
from node.encoded import ObjectKind
from node.pacs_association import Call, PacsAssociation, associate
from storage.database import close_database
from storage.inbox import judge_disk
from storage.outbox import Delivery, count_items
from storage.schema import open_database

GIBIBYTE = 2**30
PDF_CLASS, PICTURE_CLASS = "1.2.840.10008.5.1.4.1.1.104.1", "1.2.840.10008.5.1.4.1.1.7"


class Verdict(StrEnum):
    GOOD = "in order"
    NOTE = "note"
    BAD = "fault"


@dataclass(frozen=True, slots=True)
class Finding:
    """One answer: what was asked, the verdict, and what was found."""

    subject: str
    verdict: Verdict
    text: str


def show_doctor(config: Config) -> bool:
    """Print every finding as a table; True when there is no fault."""
    table = Table("", "subject", "found", box=None)
    colours = {Verdict.GOOD: "green", Verdict.NOTE: "yellow", Verdict.BAD: "red"}
    healthy = True
    for finding in examine(config):
        table.add_row(f"[{colours[finding.verdict]}]{finding.verdict}", finding.subject, finding.text)
        healthy = healthy and finding.verdict is not Verdict.BAD
    Console().print(table)
    return healthy


def examine(config: Config) -> Iterator[Finding]:
    """Every finding, in the order of the table."""
    yield from _examine_peers(config)
    yield from _examine_disk(config)
    yield from _examine_clock()
    yield from _examine_models(config)
    yield from _examine_database(config)
    for destination in config.destinations:
        yield from examine_destination(destination, config.node.ae_title)
    if not config.destinations:
        yield Finding("destinations", Verdict.NOTE, "none configured: results stay on disk")


def examine_destination(destination: Destination, calling_ae_title: str) -> Iterator[Finding]:
    """Associate as the sender would, with every class that may be sent, and see what the PACS accepts."""
    subject = f"destination {destination.name}"
    asked = replace(destination, commitment=CommitmentUse.WHEN_OFFERED)
    classes = tuple((uid, ExplicitVRLittleEndian) for uid in wanted_classes(destination))
    calling = destination.calling_ae_title or calling_ae_title
    try:
        with associate(Call(asked, calling, classes)) as association:
            association.echo()
            yield Finding(subject, Verdict.GOOD, f"answers C-ECHO; called as {calling}")
            yield from _examine_classes(subject, destination, association)
            yield _examine_commitment(subject, destination, association.offers_commitment)
    except DeliveryError as error:
        yield Finding(subject, Verdict.BAD, str(error))


def wanted_classes(destination: Destination) -> tuple[str, ...]:
    """Every SOP class that this destination may be sent, the preferred forms first."""
    extra = [
        uid for kind, uid in ((ObjectKind.PDF, PDF_CLASS), (ObjectKind.PICTURE, PICTURE_CLASS),
                              (ObjectKind.PHANTOM_CHART, PICTURE_CLASS)) if kind in destination.objects
    ]  # fmt: skip
    return tuple(dict.fromkeys((*destination.preferred_classes(), *extra)))


def _examine_classes(subject: str, destination: Destination, association: PacsAssociation) -> Iterator[Finding]:
    accepted = association.accepted()
    for uid in wanted_classes(destination):
        if uid in accepted:
            syntaxes = ", ".join(UID(syntax).name for syntax in accepted[uid])
            yield Finding(subject, Verdict.GOOD, f"accepts {UID(uid).name} ({syntaxes})")
        else:
            yield Finding(subject, Verdict.NOTE, f"does not accept {UID(uid).name}")
    for name, forms in _families(destination):
        if not any(SOP_CLASS_UIDS[form] in accepted for form in forms):
            yield Finding(subject, Verdict.BAD, f"accepts no form of the {name} ({', '.join(forms)})")


def _families(destination: Destination) -> tuple[tuple[str, tuple[str, ...]], ...]:
    families = (
        (ObjectKind.SEGMENTATION, destination.segmentation_types),
        (ObjectKind.MEASUREMENTS, destination.measurement_sr_classes),
        (ObjectKind.REPORT, destination.text_sr_classes),
    )
    return tuple((str(kind), forms) for kind, forms in families if kind in destination.objects)


def _examine_commitment(subject: str, destination: Destination, offered: bool) -> Finding:
    if offered:
        return Finding(subject, Verdict.GOOD, f"offers storage commitment (used: {destination.commitment})")
    if destination.commitment is CommitmentUse.REQUIRED:
        return Finding(subject, Verdict.BAD, "offers no storage commitment, which the configuration requires")
    return Finding(subject, Verdict.NOTE, "offers no storage commitment: delivered means stored")


def _examine_peers(config: Config) -> Iterator[Finding]:
    peers = config.receiving.peers
    if not peers:
        yield Finding("receiving", Verdict.BAD, "receiving.peers is empty: every caller is rejected")
    else:
        yield Finding("receiving", Verdict.GOOD, f"{len(peers)} callers are admitted to port {config.node.port}")


def _examine_disk(config: Config) -> Iterator[Finding]:
    folder = config.storage.folder
    standing = next(path for path in (folder, *folder.resolve().parents) if path.exists())
    if not os.access(standing, os.W_OK):
        yield Finding("disk", Verdict.BAD, f"{standing} cannot be written by this account")
        return
    usage = shutil.disk_usage(standing)
    state = judge_disk(usage.total, usage.used, usage.free, config.disk)
    room = f"{state.free_bytes / GIBIBYTE:.1f} GiB free, {state.used_fraction:.0%} used at {folder}"
    if state.refuses_associations:
        yield Finding("disk", Verdict.BAD, f"{room}: images are refused ({state.refuses_associations})")
    else:
        yield Finding("disk", Verdict.GOOD, room)


def _examine_clock() -> Iterator[Finding]:
    """IHE Consistent Time: phantom and patient scans are bound by their dates."""
    if shutil.which("timedatectl") is None:
        yield Finding("clock", Verdict.NOTE, "no timedatectl here: see that the clock is synchronised")
        return
    asked = subprocess.run(
        ["timedatectl", "show", "--property=NTPSynchronized", "--value"],
        capture_output=True, text=True, timeout=10, check=False,
    )  # fmt: skip
    answer = asked.stdout.strip()
    if answer == "yes":
        yield Finding("clock", Verdict.GOOD, "synchronised")
    else:
        yield Finding("clock", Verdict.NOTE, "not synchronised, or not known to be: see that a time service runs")


def _examine_models(config: Config) -> Iterator[Finding]:
    from node.analysis_setup import make_toolkit  # loads the networks: seconds, and only here

    try:
        toolkit = make_toolkit(config)
    except ModelError as error:
        yield Finding("models", Verdict.BAD, str(error))
        return
    networks = (toolkit.networks.coarse, toolkit.networks.fine)
    yield Finding("models", Verdict.GOOD, ", ".join(f"{one.config.stage} {one.sha256[:12]}" for one in networks))


def _examine_database(config: Config) -> Iterator[Finding]:
    if not config.storage.database_url and not config.database_file.exists():
        yield Finding("database", Verdict.NOTE, f"{config.database_file} is not there yet; the first start makes it")
        return
    try:
        sessions = open_database(config.database_url, upgrade=False)
    except DatabaseError as error:
        yield Finding("database", Verdict.BAD, str(error))
        return
    with sessions.begin() as session:
        dead = sum(n for (_, state), n in count_items(session).items() if state is Delivery.DEAD)
    close_database(sessions)
    yield Finding("database", Verdict.GOOD, "sound, schema up to date")
    if dead:
        yield Finding("outbox", Verdict.BAD, f"{dead} objects were put aside; see `qct-node status`")
