"""Who gets an association: decided from what the request says and how many are open; no sockets here."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from node.receiver_settings import ReceiverSettings

PERMANENT, TRANSIENT = 1, 2  # result (PS3.8 table 9-21)
BY_USER, BY_PRESENTATION = 1, 3  # source
CALLING_AE_NOT_RECOGNISED, CALLED_AE_NOT_RECOGNISED = 3, 7  # diagnostic with source 1
TEMPORARY_CONGESTION, LOCAL_LIMIT_EXCEEDED = 1, 2  # diagnostic with source 3

# associations beyond the limits for callers that bring no images: verification and reports are answered under load
RESERVE = 5


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: AE titles as sent, and the address of the socket."""

    calling_ae_title: str
    called_ae_title: str
    address: str


@dataclass(frozen=True, slots=True)
class Situation:
    """What else matters: the open associations, whether this one would bring images, and whether there is room."""

    open_callers: tuple[Caller, ...]
    wants_storage: bool
    disk_refusal: str | None
    stopping: bool = False


@dataclass(frozen=True, slots=True)
class Rejection:
    """An A-ASSOCIATE-RJ (PS3.8 9.3.4) and its reason for the log."""

    result: int
    source: int
    diagnostic: int
    reason: str
    admitting_lines: str = ""  # lines of config.yaml that would admit this caller


def judge_caller(caller: Caller, own_ae_title: str, settings: ReceiverSettings, now: Situation) -> Rejection | None:
    """None admits the caller; a rejection says why not, and for a stranger how the configuration could admit it."""
    if now.stopping:
        return Rejection(TRANSIENT, BY_PRESENTATION, TEMPORARY_CONGESTION, "the node is stopping")
    if not any(peer.admits(caller.calling_ae_title, caller.address) for peer in settings.peers):
        return _stranger(caller, settings)
    if settings.check_called_ae_title and caller.called_ae_title != own_ae_title:
        reason = f"called {caller.called_ae_title!r}, this node is {own_ae_title!r}"
        lines = f"node:\n  ae_title: {_quoted(caller.called_ae_title)}"
        return Rejection(PERMANENT, BY_USER, CALLED_AE_NOT_RECOGNISED, reason, lines)
    reserve = 0 if now.wants_storage else RESERVE
    if limit := _limit_reached(caller, settings, now.open_callers, reserve):
        return Rejection(TRANSIENT, BY_PRESENTATION, LOCAL_LIMIT_EXCEEDED, limit)
    if now.wants_storage and now.disk_refusal:
        return Rejection(TRANSIENT, BY_PRESENTATION, LOCAL_LIMIT_EXCEEDED, f"no room for images: {now.disk_refusal}")
    return None


def _stranger(caller: Caller, settings: ReceiverSettings) -> Rejection:
    titles = [peer for peer in settings.peers if peer.ae_title == caller.calling_ae_title]
    if titles:
        allowed = ", ".join(address for peer in titles for address in peer.addresses)
        reason = f"AE title {caller.calling_ae_title!r} may come from {allowed}, not from {caller.address}"
    else:
        reason = f"AE title {caller.calling_ae_title!r} at {caller.address} is not in receiving.peers"
    return Rejection(PERMANENT, BY_USER, CALLING_AE_NOT_RECOGNISED, reason, admitting_lines(caller))


def admitting_lines(caller: Caller) -> str:
    """The lines of config.yaml that admit this caller and nobody else."""
    bits = 128 if ":" in caller.address else 32
    network = f'"{caller.address}/{bits}"'
    return f"receiving:\n  peers:\n    - ae_title: {_quoted(caller.calling_ae_title)}\n      addresses: [{network}]"


def _quoted(text: str) -> str:
    """A YAML double-quoted scalar."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(c if c.isprintable() else f"\\x{ord(c) & 0xFF:02x}" for c in escaped) + '"'


def _limit_reached(
    caller: Caller, settings: ReceiverSettings, open_callers: Iterable[Caller], reserve: int
) -> str | None:
    counts = Counter((c.calling_ae_title, c.address) for c in open_callers)
    if counts.total() >= settings.max_associations + reserve:
        return f"{counts.total()} associations are open, receiving.max_associations is {settings.max_associations}"
    own = counts[(caller.calling_ae_title, caller.address)]
    if own >= settings.max_associations_per_peer + reserve:
        return (
            f"{own} associations of {caller.calling_ae_title!r} are open, receiving.max_associations_per_peer is "
            f"{settings.max_associations_per_peer}"
        )
    return None
