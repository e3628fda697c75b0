"""Bad peers on the association port: none of them keeps a good one from being served."""

import random
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from pydicom.uid import CTImageStorage
from pynetdicom import AE
from pynetdicom.presentation import build_context
from pynetdicom.sop_class import Verification

from node.admission import Caller, admitting_lines
from node.receiver_settings import Peer, TlsSettings
from tests.network_builders import (
    AE_TITLE,
    SETTINGS,
    RunningNode,
    ct_slice,
    echoscu,
    run_tool,
    running_node,
    series_spec,
    storescu,
    wait_until,
    write_file,
)
from tests.raw_peer import ABORT, RawPeer, association_request, p_data, store_command
from tests.test_bad_inputs import encode

ATTACKER = ("127.0.0.2", 0)  # another address of loopback
FUZZ_S = 8.0


@pytest.fixture
def node(tmp_path: Path) -> Iterator[RunningNode]:
    with running_node(tmp_path / "node") as running:
        yield running


def connect(node: RunningNode, source: tuple[str, int] = ATTACKER) -> socket.socket:
    return socket.create_connection(("127.0.0.1", node.port), timeout=10, source_address=source)


def closed_within(connection: socket.socket, seconds: float) -> bool:
    """Whether the node closes the connection in time."""
    connection.settimeout(seconds)
    try:
        return connection.recv(1) == b""
    except TimeoutError:
        return False
    except ConnectionError:
        return True


def echo_seconds(port: int) -> float:
    started = time.monotonic()
    assert echoscu(port).code == 0
    return time.monotonic() - started


def test_a_stranger_is_rejected_and_the_log_holds_the_lines_that_would_admit_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = replace(SETTINGS, peers=(Peer("CT1", ("127.0.0.0/8",)),))
    with running_node(tmp_path / "node", settings) as node:
        assert echoscu(node.port, calling="CT1").code == 0
        answer = echoscu(node.port, calling="STRANGER")
        assert "Calling AE Title Not Recognized" in answer.text, answer.text
        (_, caller, rejection) = node.receiver.rejections()[-1]
    assert caller.calling_ae_title == "STRANGER"
    lines = 'receiving:\n  peers:\n    - ae_title: "STRANGER"\n      addresses: ["127.0.0.1/32"]'
    assert rejection.admitting_lines == lines
    assert lines in caplog.text


def test_a_known_title_from_another_address_is_rejected(tmp_path: Path) -> None:
    settings = replace(SETTINGS, peers=(Peer("CT1", ("10.0.0.0/8",)),))
    with running_node(tmp_path / "node", settings) as node:
        assert "Calling AE Title Not Recognized" in echoscu(node.port, calling="CT1").text
        assert "not from 127.0.0.1" in node.receiver.rejections()[-1][2].reason


def test_the_lines_in_the_log_are_yaml_whatever_the_title_holds() -> None:
    yaml = pytest.importorskip("yaml")
    for title in ('A"B', "A\\B", "$(reboot)", "A\x07B", "A: [B"):
        lines = yaml.safe_load(admitting_lines(Caller(title, AE_TITLE, "fe80::1")))
        assert lines["receiving"]["peers"] == [{"ae_title": title, "addresses": ["fe80::1/128"]}]


def test_a_wrong_called_title_is_rejected_unless_configured(tmp_path: Path) -> None:
    with running_node(tmp_path / "strict") as node:
        assert "Called AE Title Not Recognized" in echoscu(node.port, called="OTHER").text
    with running_node(tmp_path / "lenient", replace(SETTINGS, check_called_ae_title=False)) as node:
        assert echoscu(node.port, called="OTHER").code == 0


def test_limits_per_peer_and_in_total_reject_as_transient(tmp_path: Path) -> None:
    settings = replace(SETTINGS, max_associations=3, max_associations_per_peer=2)
    with running_node(tmp_path / "node", settings) as node, ExitStack() as held:

        def associate(title: str) -> int:
            ae = AE(title)
            ae.add_requested_context(CTImageStorage)
            association = ae.associate("127.0.0.1", node.port, ae_title=AE_TITLE)
            held.callback(association.abort)
            return 0 if association.is_established else association.acceptor.primitive.result

        assert [associate("CT1"), associate("CT1")] == [0, 0]
        assert associate("CT1") == 2, "third of one peer"
        assert associate("CT2") == 0
        assert associate("CT3") == 2, "fourth in total"
        assert echoscu(node.port, calling="CT3").code == 0, "verification has places of its own"
    assert not node.receiver.open_associations()


def test_a_slot_is_free_again_when_its_association_ends(tmp_path: Path) -> None:
    with running_node(tmp_path / "node", replace(SETTINGS, max_associations=1)) as node:
        for _ in range(5):
            assert wait_until(lambda: not node.receiver.open_associations())
            with RawPeer(node.port) as peer:
                assert peer.answer_type == 0x02, "accepted"


def test_500_silent_connections_do_not_keep_a_scanner_out(node: RunningNode) -> None:
    with ExitStack() as open_sockets:
        silent = [open_sockets.enter_context(connect(node)) for _ in range(500)]
        assert echo_seconds(node.port) < 4.0
        assert closed_within(silent[0], 5.0), "the oldest leaves first"
        assert closed_within(silent[-1], 5.0), "ARTIM closes the rest"
        assert echoscu(node.port).code == 0


def test_a_request_that_trickles_in_is_dropped_at_the_deadline(node: RunningNode) -> None:
    request = association_request([build_context(Verification)])
    with connect(node) as connection:
        started = time.monotonic()
        with pytest.raises(OSError):  # noqa: PT011  reset or broken pipe, as the kernel likes
            for byte in request:
                connection.sendall(bytes([byte]))
                time.sleep(0.1)
        assert time.monotonic() - started < 4.0


@pytest.mark.parametrize(
    "greeting",
    [b"GET / HTTP/1.1\r\nHost: node\r\n\r\n", bytes.fromhex("160301020001"), b"\x00" * 6, b"\x04\x00\xff\xff\xff\xff"],
    ids=["http", "tls", "zeros", "data before association"],
)
def test_other_protocols_are_dropped_at_once(node: RunningNode, greeting: bytes) -> None:
    with connect(node) as connection:
        connection.sendall(greeting)
        assert closed_within(connection, 1.0)


def test_an_announced_length_of_4_gib_costs_no_memory(node: RunningNode) -> None:
    before = psutil.Process().memory_info().rss
    with connect(node) as connection:
        connection.sendall(b"\x01\x00\xff\xff\xff\xff")
        assert closed_within(connection, 1.0)
    with RawPeer(node.port) as peer:
        peer.socket.sendall(b"\x04\x00\xff\xff\xff\xff")
        assert peer.read_pdu()[0] == 0x07, "A-ABORT"
    assert psutil.Process().memory_info().rss - before < 10 * 2**20


def test_a_pdu_that_stops_halfway_ends_its_association_at_the_network_timeout(tmp_path: Path) -> None:
    with running_node(tmp_path / "node", replace(SETTINGS, network_timeout_s=1.0)) as node, RawPeer(node.port) as peer:
        peer.socket.sendall(p_data(1, 0x03, store_command(CTImageStorage, "1.2.3"))[:-4])
        assert wait_until(lambda: not node.receiver.open_associations(), 5.0)


def test_an_idle_association_is_aborted_at_the_network_timeout(tmp_path: Path) -> None:
    with running_node(tmp_path / "node", replace(SETTINGS, network_timeout_s=1.0)) as node, RawPeer(node.port) as peer:
        assert peer.read_pdu()[0] == 0x07
        assert wait_until(lambda: not node.receiver.open_associations())


def test_a_sender_that_does_not_wait_for_answers_is_aborted(node: RunningNode) -> None:
    encoded = encode(ct_slice(series_spec(), 0))
    with RawPeer(node.port) as peer:
        try:
            for index in range(200):
                peer.send_store(f"1.2.3.{index}", encoded)
        except ConnectionError:
            pass
        assert wait_until(lambda: not node.receiver.open_associations())
    assert wait_until(lambda: not list(node.inbox.incoming.iterdir()))


@pytest.mark.parametrize("ending", ["reset", "abort", "close"])
def test_an_association_cut_inside_a_data_set_leaves_nothing(node: RunningNode, ending: str) -> None:
    before = threading.active_count()
    for _ in range(5):
        with RawPeer(node.port) as peer:
            peer.socket.sendall(p_data(1, 0x03, store_command(CTImageStorage, "1.2.3")) + p_data(1, 0x00, bytes(9000)))
            assert wait_until(lambda: len(list(node.inbox.incoming.iterdir())) == 1)
            if ending == "abort":
                peer.socket.sendall(ABORT)
            if ending == "reset":
                peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        assert wait_until(lambda: not list(node.inbox.incoming.iterdir()))
    assert wait_until(lambda: not node.receiver.open_associations())
    assert wait_until(lambda: threading.active_count() <= before), "threads are gone"
    assert not list(node.inbox.stored_paths())


def test_many_associations_leave_no_threads_and_no_descriptors(node: RunningNode) -> None:
    for _ in range(5):
        echo_by_hand(node)
    threads, descriptors = threading.active_count(), open_descriptors()
    for _ in range(60):
        echo_by_hand(node)
    assert wait_until(lambda: threading.active_count() <= threads)
    assert wait_until(lambda: open_descriptors() <= descriptors + 1)


def open_descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def echo_by_hand(node: RunningNode) -> None:
    with RawPeer(node.port) as peer:
        assert peer.echo() == 0
        assert peer.release() == 6


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A node's and a scanner's own certificate, made with openssl."""
    folder = tmp_path_factory.mktemp("certificates")
    for name in ("node", "scanner"):
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={name}",
             "-keyout", str(folder / f"{name}.key"), "-out", str(folder / f"{name}.crt")],
            check=True, capture_output=True,
        )  # fmt: skip
    return folder


@pytest.fixture
def tls_node(tmp_path: Path, certificates: Path) -> Iterator[RunningNode]:
    tls = TlsSettings(True, 0, certificates / "node.crt", certificates / "node.key", certificates / "scanner.crt")
    with running_node(tmp_path / "node", replace(SETTINGS, tls=tls)) as running:
        yield running


def send_encrypted(node: RunningNode, certificates: Path, path: Path, name: str = "scanner") -> int:
    keys = ["+tls", str(certificates / f"{name}.key"), str(certificates / f"{name}.crt")]
    options = [*keys, "+cf", str(certificates / "node.crt"), "-aec", AE_TITLE, "-aet", "CT1"]
    return run_tool("storescu", *options, "127.0.0.1", str(node.receiver.tls_port), str(path)).code


def test_images_arrive_over_tls_and_only_with_a_trusted_certificate(
    tls_node: RunningNode, certificates: Path, tmp_path: Path
) -> None:
    path = write_file(ct_slice(series_spec(rows=256), 0), tmp_path / "a.dcm")
    assert send_encrypted(tls_node, certificates, path) == 0
    assert len(list(tls_node.inbox.stored_paths())) == 1
    assert send_encrypted(tls_node, certificates, path, name="node") != 0, "not signed by the configured authority"
    assert echoscu(tls_node.port).code == 0, "the plain port serves beside it"


def test_a_silent_tls_client_holds_nobody_up(tls_node: RunningNode, certificates: Path, tmp_path: Path) -> None:
    path = write_file(ct_slice(series_spec(), 0), tmp_path / "a.dcm")
    port = tls_node.receiver.tls_port
    assert port is not None
    with socket.create_connection(("127.0.0.1", port)) as silent:
        started = time.monotonic()
        assert send_encrypted(tls_node, certificates, path) == 0
        assert time.monotonic() - started < 4.0
        assert closed_within(silent, 4.0)


def test_plain_dicom_on_the_tls_port_is_dropped(tls_node: RunningNode) -> None:
    port = tls_node.receiver.tls_port
    assert port is not None
    assert echoscu(port).code != 0
    assert tls_node.receiver.alive


def test_fuzzed_pdus_raise_nothing_and_cost_no_memory(node: RunningNode, tmp_path: Path) -> None:
    """Mutated associations for eight seconds: no thread dies of an exception, and images still arrive."""
    surprises: list[threading.ExceptHookArgs] = []
    hook, threading.excepthook = threading.excepthook, surprises.append
    rng = random.Random(4541)
    conversations = 0
    try:
        for _ in range(50):
            fuzz_once(node, rng)
        before = psutil.Process().memory_info().rss
        deadline = time.monotonic() + FUZZ_S
        while time.monotonic() < deadline:
            fuzz_once(node, rng)
            conversations += 1
    finally:
        threading.excepthook = hook
    assert not surprises, surprises
    assert conversations > 50
    assert psutil.Process().memory_info().rss - before < 30 * 2**20
    assert node.receiver.alive
    assert storescu(node.port, str(write_file(ct_slice(series_spec(), 0), tmp_path / "a.dcm"))).code == 0
    assert wait_until(lambda: not list(node.inbox.incoming.iterdir()), 12.0)


def fuzz_once(node: RunningNode, rng: random.Random) -> None:
    """A whole conversation with a few bytes changed, cut or doubled, sent without waiting for answers."""
    request = association_request([build_context(CTImageStorage), build_context(Verification)])
    encoded = encode(ct_slice(series_spec(), 0))
    store = p_data(1, 0x03, store_command(CTImageStorage, "1.2.3")) + p_data(1, 0x02, encoded)
    parts = [request, store] if rng.random() < 0.3 else [mutate(request, rng), store]
    if rng.random() < 0.8:
        parts[1] = mutate(store, rng)
    with socket.create_connection(("127.0.0.1", node.port), timeout=0.2) as connection:
        connection.settimeout(0.02)
        for part in parts:
            try:
                connection.sendall(part)
                connection.recv(4096)
            except OSError:
                pass


def mutate(message: bytes, rng: random.Random) -> bytes:
    changed = bytearray(message)
    for _ in range(rng.randint(1, 6)):
        position = rng.randrange(min(len(changed), 300))
        changed[position] = rng.choice((0, 1, 0x7F, 0xFF, rng.randrange(256)))
    if rng.random() < 0.2:
        del changed[rng.randrange(len(changed)) :]
    if rng.random() < 0.1:
        changed += changed[: rng.randrange(200)]
    return bytes(changed)
