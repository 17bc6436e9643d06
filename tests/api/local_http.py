"""A real HTTP server on this machine whose answers a test decides."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Meeting(BaseHTTPRequestHandler):
    """Every request is met by `meet`."""

    protocol_version = "HTTP/1.1"

    def meet(self) -> None:
        """Answer."""
        raise NotImplementedError

    def do_GET(self) -> None:
        """Look."""
        self.meet()

    def do_POST(self) -> None:
        """Make."""
        self.meet()

    def do_DELETE(self) -> None:
        """Remove."""
        self.meet()


@contextmanager
def answering(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """Serve until the block ends; its address."""
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
