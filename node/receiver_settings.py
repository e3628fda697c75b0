"""What a site decides about receiving: who may send, what is accepted, and the limits that keep the node up."""

import ipaddress
from dataclasses import dataclass
from pathlib import Path

from pydicom.uid import CTImageStorage, EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage

CT_CLASSES: tuple[str, ...] = (CTImageStorage, EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage)
# what a study router sends along with CT images: stored, listed as OTHER, never analysed
ROUTED_ALONG: tuple[str, ...] = (
    "1.2.840.10008.5.1.4.1.1.7",  # Secondary Capture Image
    "1.2.840.10008.5.1.4.1.1.7.1",  # Multi-frame Single Bit Secondary Capture
    "1.2.840.10008.5.1.4.1.1.7.2",  # Multi-frame Grayscale Byte Secondary Capture
    "1.2.840.10008.5.1.4.1.1.7.3",  # Multi-frame Grayscale Word Secondary Capture
    "1.2.840.10008.5.1.4.1.1.7.4",  # Multi-frame True Color Secondary Capture
    "1.2.840.10008.5.1.4.1.1.4",  # MR Image
    "1.2.840.10008.5.1.4.1.1.20",  # Nuclear Medicine Image
    "1.2.840.10008.5.1.4.1.1.128",  # Positron Emission Tomography Image
    "1.2.840.10008.5.1.4.1.1.11.1",  # Grayscale Softcopy Presentation State
    "1.2.840.10008.5.1.4.1.1.66",  # Raw Data
    "1.2.840.10008.5.1.4.1.1.66.4",  # Segmentation
    "1.2.840.10008.5.1.4.1.1.88.11",  # Basic Text SR
    "1.2.840.10008.5.1.4.1.1.88.22",  # Enhanced SR
    "1.2.840.10008.5.1.4.1.1.88.33",  # Comprehensive SR
    "1.2.840.10008.5.1.4.1.1.88.34",  # Comprehensive 3D SR
    "1.2.840.10008.5.1.4.1.1.88.59",  # Key Object Selection Document
    "1.2.840.10008.5.1.4.1.1.88.67",  # X-Ray Radiation Dose SR
    "1.2.840.10008.5.1.4.1.1.104.1",  # Encapsulated PDF
    "1.2.840.10008.5.1.4.1.1.481.3",  # RT Structure Set
)


@dataclass(frozen=True, slots=True)
class Peer:
    """One line of the allow-list: a calling AE title and the addresses that it may come from."""

    ae_title: str  # as the peer sends it; "*" stands for every title
    addresses: tuple[str, ...]  # networks in CIDR notation, for example "10.1.2.0/24"

    def admits(self, calling_ae_title: str, address: str) -> bool:
        return self.ae_title in ("*", calling_ae_title) and self.holds(address)

    def holds(self, address: str) -> bool:
        """Whether the address lies in one of the networks; IPv4 inside IPv6 counts as IPv4."""
        ip = ipaddress.ip_address(address.partition("%")[0])
        mapped = getattr(ip, "ipv4_mapped", None) or ip
        return any(mapped in ipaddress.ip_network(network, strict=False) for network in self.addresses)


ANY_PEER = Peer("*", ("0.0.0.0/0", "::/0"))


@dataclass(frozen=True, slots=True)
class TlsSettings:
    """The second, encrypted port (PS3.15 B.12): TLS 1.2 or newer."""

    enabled: bool = False
    port: int = 2762  # registered for DICOM over TLS
    certificate_file: Path | None = None  # PEM, with the chain
    key_file: Path | None = None  # PEM, without a password
    client_ca_file: Path | None = None  # PEM; where given, peers must show a certificate that it signed


@dataclass(frozen=True, slots=True)
class ListenAddress:
    """Where the node listens and under which name."""

    ae_title: str = "QCT-NODE"
    bind_address: str = "0.0.0.0"
    port: int = 11112  # 0: a free one, for tests


@dataclass(frozen=True, slots=True)
class ReceiverSettings:
    """Everything about receiving; every field is a key of the configuration."""

    peers: tuple[Peer, ...] = ()  # the allow-list; empty: nobody may connect
    check_called_ae_title: bool = True  # refuse callers that call the node by another name
    other_classes: tuple[str, ...] = ROUTED_ALONG  # SOP classes stored beside CT; others are refused in negotiation
    max_associations: int = 20  # open at once, in total
    max_associations_per_peer: int = 10  # ... from one AE title at one address
    max_waiting_connections: int = 64  # connections that have not asked for an association yet
    association_timeout_s: float = 5.0  # for the TLS handshake and the association request (ARTIM)
    network_timeout_s: float = 60.0  # an association without traffic is aborted after this; bounds each PDU too
    max_pdu_bytes: int = 131072  # advertised; a longer PDU aborts the association
    tls: TlsSettings = TlsSettings()
