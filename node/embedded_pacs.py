"""A small PACS for demonstrations and dry runs: a Storage SCP that keeps what it receives as files."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pynetdicom import AE, evt
from pynetdicom.sop_class import (
    BasicTextSRStorage,
    Comprehensive3DSRStorage,
    ComprehensiveSRStorage,
    CTImageStorage,
    EncapsulatedPDFStorage,
    EnhancedSRStorage,
    SecondaryCaptureImageStorage,
    SegmentationStorage,
    Verification,
)

KEPT_CLASSES = (
    BasicTextSRStorage,
    Comprehensive3DSRStorage,
    ComprehensiveSRStorage,
    CTImageStorage,
    EncapsulatedPDFStorage,
    EnhancedSRStorage,
    SecondaryCaptureImageStorage,
    SegmentationStorage,
    Verification,
)
SUCCESS, OUT_OF_RESOURCES = 0x0000, 0xA700


class EmbeddedPacs:
    """Listens on loopback; `received` is called with the path of every stored object."""

    def __init__(self, folder: Path, received: Callable[[Path], None] = lambda path: None, port: int = 0) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._received = folder, received
        ae = AE(ae_title="DEMOPACS")
        for sop_class in KEPT_CLASSES:
            ae.add_supported_context(sop_class)
        handlers = [(evt.EVT_C_STORE, self._store)]
        self._server = ae.start_server(("127.0.0.1", port), block=False, evt_handlers=handlers)
        self.ae_title, self.port = "DEMOPACS", int(self._server.server_address[1])

    def stop(self) -> None:
        self._server.shutdown()

    def _store(self, event: Any) -> int:
        path = self._folder / f"{event.request.AffectedSOPInstanceUID}.dcm"
        temporary = path.with_suffix(".part")
        try:
            temporary.write_bytes(event.encoded_dataset())
            temporary.rename(path)
        except OSError:
            return OUT_OF_RESOURCES
        self._received(path)
        return SUCCESS
