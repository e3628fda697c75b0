"""Serves a prebuilt OHIF on loopback with Orthanc's DICOMweb behind the same origin.

The viewer needs cross-origin isolation headers for its workers, a configuration that points to this origin instead of
a public server, and no service worker, which would cache between runs.
"""

import json
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.error import HTTPError

_DATA_SOURCE = {
    "namespace": "@ohif/extension-default.dataSourcesModule.dicomweb",
    "sourceName": "dicomweb",
    "configuration": {
        "friendlyName": "test", "name": "test", "wadoUriRoot": "/wado", "qidoRoot": "/dicom-web",
        "wadoRoot": "/dicom-web", "qidoSupportsIncludeField": False, "imageRendering": "wadors",
        "thumbnailRendering": "wadors", "enableStudyLazyLoad": True, "supportsFuzzyMatching": False,
        "supportsWildcard": False, "bulkDataURI": {"enabled": True}, "omitQuotationForMultipartRequest": True,
    },
}
_CONFIG = {
    "routerBasename": "/", "extensions": [], "modes": [], "customizationService": {}, "showStudyList": True,
    "maxNumberOfWebWorkers": 1, "showWarningMessageForCrossOrigin": False, "showCPUFallbackMessage": False,
    "strictZSpacingForVolumeViewport": True, "defaultDataSourceName": "dicomweb", "dataSources": [_DATA_SOURCE],
    "investigationalUseDialog": {"option": "never"},
}


class _Handler(SimpleHTTPRequestHandler):
    """Files of the viewer, its configuration, and everything below /dicom-web from Orthanc."""

    def __init__(self, *arguments: object, orthanc_url: str, **keywords: object) -> None:
        self.orthanc_url = orthanc_url
        super().__init__(*arguments, **keywords)  # type: ignore[arg-type]

    def end_headers(self) -> None:
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        self.send_header("Cache-Control", "no-store")
        super().end_headers()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path.startswith("/dicom-web"):
            self._proxy()
        elif path == "/app-config.js":
            self._answer(200, "text/javascript", f"window.config = {json.dumps(_CONFIG)};".encode())
        elif path in ("/sw.js", "/init-service-worker.js"):
            self._answer(200, "text/javascript", b"")
        else:
            if not (Path(self.directory) / path.lstrip("/")).is_file():
                self.path = "/index.html"  # a route of the application
            super().do_GET()

    def _proxy(self) -> None:
        headers = {"Accept": self.headers.get("Accept", "*/*"), "Host": self.headers["Host"]}
        request = urllib.request.Request(self.orthanc_url + self.path, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=120) as response:
                self._answer(response.status, response.headers["Content-Type"], response.read())
        except HTTPError as error:
            self._answer(error.code, "text/plain", error.read())

    def _answer(self, status: int, content_type: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Silence: the test's output is what matters."""


@contextmanager
def serving_ohif(dist: Path, orthanc_url: str) -> Iterator[str]:
    """URL of the viewer while inside."""
    handler = partial(_Handler, orthanc_url=orthanc_url, directory=str(dist))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
