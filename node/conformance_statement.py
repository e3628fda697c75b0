"""`qct-node conformance`: the facts of the running configuration, put into the statement's template."""

import sys

from pydicom.uid import PYDICOM_IMPLEMENTATION_UID
from pynetdicom import PYNETDICOM_IMPLEMENTATION_VERSION

from node.config import Config
from node.conformance import ConformanceFacts, PeerFacts, conformance_statement
from node.destinations import Destination
from node.receiver_settings import CT_CLASSES
from node.transfer_syntaxes import decodable_syntaxes


def print_conformance(config: Config) -> None:
    sys.stdout.write(conformance_statement(facts_of(config)))


def facts_of(config: Config) -> ConformanceFacts:
    receiving = config.receiving
    return ConformanceFacts(
        ae_title=config.node.ae_title,
        port=config.node.port,
        accepted_sop_class_uids=(*CT_CLASSES, *receiving.other_classes),
        accepted_transfer_syntax_uids=tuple(str(uid) for uid in decodable_syntaxes()),
        settings=config.results,
        destinations=tuple(_peer(destination) for destination in config.destinations),
        implementation_class_uid=str(PYDICOM_IMPLEMENTATION_UID),
        implementation_version_name=PYNETDICOM_IMPLEMENTATION_VERSION,
        max_pdu_bytes=receiving.max_pdu_bytes,
        max_associations=receiving.max_associations,
        max_associations_per_peer=receiving.max_associations_per_peer,
        calling_ae_titles=tuple(peer.ae_title for peer in receiving.peers),
        tls_port=receiving.tls.port if receiving.tls.enabled else None,
        tls_client_certificates=receiving.tls.client_ca_file is not None,
        timezone=config.node.timezone,
    )


def _peer(destination: Destination) -> PeerFacts:
    return PeerFacts(
        destination.name,
        destination.ae_title,
        destination.preferred_classes(),
        str(destination.commitment),
        destination.tls.enabled,
    )
