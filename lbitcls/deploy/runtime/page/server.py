"""Server of a page's folder for this machine alone, with the standard library."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from lbitcls.utils.errors import ResourceError

HOST = "127.0.0.1"
_TYPES = {
    ".mjs": "text/javascript",
    ".js": "text/javascript",
    ".wasm": "application/wasm",
    ".json": "application/json",
    ".onnx": "application/octet-stream",
}
_HEADERS = {
    # Isolated from other sites, a page may use several threads.
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}


class _Handler(SimpleHTTPRequestHandler):
    extensions_map = {**SimpleHTTPRequestHandler.extensions_map, **_TYPES}

    def end_headers(self) -> None:
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        super().end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing: a browser reports what it misses."""


def open_server(folder: Path, port: int = 0) -> ThreadingHTTPServer:
    """Return a server of a folder on a port of the loopback address; 0: a free one.

    Raises:
        ResourceError: The port is in use, or may not be used.
    """
    try:
        return ThreadingHTTPServer((HOST, port), functools.partial(_Handler, directory=str(folder)))
    except OSError as error:
        raise ResourceError(f"port {port} cannot be used ({error.strerror}); give another --port.") from error


def address(server: ThreadingHTTPServer) -> str:
    """Return the URL of a server's page."""
    return f"http://{HOST}:{server.server_port}/"


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """Serve a folder from a thread; yield the URL of its page."""
    with open_server(folder) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield address(server)
        finally:
            server.shutdown()
            thread.join()
