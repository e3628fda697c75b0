"""A real Orthanc on loopback for one test: started on free ports with its storage in a temporary folder, then stopped.

Orthanc comes from Debian's packages `orthanc` and `orthanc-dicomweb`.
"""

import json
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError

import pytest

_PLUGIN_FOLDERS = ("/usr/share/orthanc/plugins", "/usr/lib/orthanc")
_START_S = 60.0

needs_orthanc = pytest.mark.skipif(
    shutil.which("Orthanc") is None, reason="Orthanc is not installed (Debian packages orthanc, orthanc-dicomweb)"
)


@dataclass(frozen=True, slots=True)
class Orthanc:
    """A running Orthanc."""

    ae_title: str
    dicom_port: int
    http_port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http_port}"

    def get(self, path: str, accept: str = "*/*") -> bytes:
        request = urllib.request.Request(f"{self.url}{path}", headers={"Accept": accept})
        with urllib.request.urlopen(request, timeout=60) as response:
            return bytes(response.read())

    def json(self, path: str) -> object:
        return json.loads(self.get(path, "application/json"))


@contextmanager
def running_orthanc(folder: Path, options: dict[str, object] | None = None) -> Iterator[Orthanc]:
    """Start Orthanc with its DICOMweb plugin and these extra options; stop it and wait for its end afterwards."""
    orthanc = Orthanc("ORTHANC", free_port(), free_port())
    config = folder / "orthanc.json"
    config.write_text(json.dumps(_configuration(orthanc, folder) | (options or {})))
    with (folder / "orthanc.log").open("wb") as log:
        process = subprocess.Popen(["Orthanc", str(config)], stdout=log, stderr=log)
        try:
            _wait_until_up(orthanc, process, folder / "orthanc.log")
            yield orthanc
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(10)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _configuration(orthanc: Orthanc, folder: Path) -> dict[str, object]:
    plugins = [
        str(path) for place in _PLUGIN_FOLDERS for path in sorted(Path(place).glob("libOrthancDicomWeb.so*"))
    ]
    return {
        "Name": "test", "StorageDirectory": str(folder / "storage"), "IndexDirectory": str(folder / "storage"),
        "DicomAet": orthanc.ae_title, "DicomPort": orthanc.dicom_port, "HttpPort": orthanc.http_port,
        "RemoteAccessAllowed": False, "AuthenticationEnabled": False, "DicomAlwaysAllowStore": True,
        "DicomAlwaysAllowEcho": True, "Plugins": plugins[:1],
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/", "Host": "127.0.0.1"},
    }


def _wait_until_up(orthanc: Orthanc, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"Orthanc ended with code {process.returncode}: {log.read_text()[-2000:]}")
        try:
            orthanc.get("/system")
            return
        except (URLError, OSError):
            time.sleep(0.1)
    raise RuntimeError(f"Orthanc did not answer within {_START_S:.0f} s: {log.read_text()[-2000:]}")
