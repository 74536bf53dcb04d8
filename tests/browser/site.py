"""One origin for the browser: OHIF's files, our configuration of it, and Orthanc's DICOMweb behind them."""

from __future__ import annotations

import http.client
import json
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar

_SOURCE = {
    "namespace": "@ohif/extension-default.dataSourcesModule.dicomweb",
    "sourceName": "orthanc",
    "configuration": {
        "friendlyName": "Orthanc",
        "name": "orthanc",
        "qidoRoot": "/dicom-web",
        "wadoRoot": "/dicom-web",
        "wadoUriRoot": "/dicom-web",
        "qidoSupportsIncludeField": True,
        "imageRendering": "wadors",
        "thumbnailRendering": "wadors",
        "enableStudyLazyLoad": True,
        "supportsFuzzyMatching": False,
        "supportsWildcard": True,
        "singlepart": "bulkdata,video",
        "bulkDataURI": {"enabled": True},
        "omitQuotationForMultipartRequest": True,
    },
}
_CONFIG = {
    "routerBasename": "/",
    "extensions": [],
    "modes": [],
    "customizationService": {},
    "showStudyList": True,
    "showErrorDetails": "always",
    "maxNumberOfWebWorkers": 2,
    "defaultDataSourceName": "orthanc",
    "dataSources": [_SOURCE],
}
_PASSED_ON = ("Content-Type", "Content-Location")


class Site:
    """An HTTP server on a free loopback port, for as long as the ``with`` block runs."""

    def __init__(self, viewer: Path, pacs_port: int) -> None:
        handler = type("Handler", (_Handler,), {"viewer": viewer, "pacs_port": pacs_port})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, name="site", daemon=True)
        self.address = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Site:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=20)


class _Handler(SimpleHTTPRequestHandler):
    """Files, and any unknown path as the viewer's first page: it does its routing itself."""

    viewer: ClassVar[Path]
    pacs_port: ClassVar[int]
    protocol_version = "HTTP/1.1"

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments, directory=str(self.viewer))

    def guess_type(self, path: str | PathLike[str]) -> str:
        # A browser runs and compiles nothing of another type, and not every machine's table has these.
        known = {".js": "text/javascript", ".mjs": "text/javascript", ".wasm": "application/wasm"}
        return known.get(Path(path).suffix) or super().guess_type(path)

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path.startswith("/dicom-web/"):
            self._pass_on()
        elif path == "/app-config.js":
            self._answer(200, f"window.config = {json.dumps(_CONFIG)};".encode(), {"Content-Type": "text/javascript"})
        else:
            if not Path(self.translate_path(self.path)).is_file():
                self.path = "/index.html"
            super().do_GET()

    def _pass_on(self) -> None:
        """Ask Orthanc the same, by the name the browser knows it: it makes the addresses of bulk data from that."""
        headers = {key: self.headers[key] for key in ("Accept", "Host", "Range") if self.headers[key]}
        connection = http.client.HTTPConnection("127.0.0.1", self.pacs_port, timeout=120)
        try:
            connection.request("GET", self.path, headers=headers)
            reply = connection.getresponse()
            content = reply.read()
        finally:
            connection.close()
        kept = {key: value for key in _PASSED_ON if (value := reply.getheader(key))}
        self._answer(reply.status, content, kept)

    def _answer(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def end_headers(self) -> None:
        # What OHIF asks of its server, so that its workers may share memory.
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        super().end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""
