"""What can be between a client and its server: a wire that is cut or changes bytes, and servers that are none."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Harm = Callable[[int, int, bytes], bytes | None]
"""(number of the connection, offset in what came back, bytes) -> what is handed on; None cuts the connection."""


@dataclass
class Wire:
    """A way to a server through which nothing goes unseen."""

    port: int
    num_connections: int = 0
    bytes_back: int = 0


@contextlib.contextmanager
def wire(
    upstream: int, harm: Harm = lambda _n, _at, block: block, there: Callable[[bytes], bytes] = lambda block: block
) -> Iterator[Wire]:
    """Run a TCP proxy on a port of its own. harm: on the way back; there: changes of bytes on the way there."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        made = Wire(listener.getsockname()[1])

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    client, _ = listener.accept()
                    made.num_connections += 1
                    args = (made, made.num_connections, client, upstream, harm, there)
                    threading.Thread(target=_carry, args=args, daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield made
        listener.shutdown(socket.SHUT_RDWR)


def _carry(
    made: Wire, number: int, client: socket.socket, upstream: int, harm: Harm, there: Callable[[bytes], bytes]
) -> None:
    with contextlib.suppress(OSError), client, socket.create_connection(("127.0.0.1", upstream)) as server:
        threading.Thread(target=_forward, args=(client, server, there), daemon=True).start()
        at = 0
        while block := server.recv(1 << 16):
            changed = harm(number, at, block)
            if changed is None:
                break
            client.sendall(changed)
            at += len(block)
            made.bytes_back += len(block)
        for end in (client, server):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


def _forward(client: socket.socket, server: socket.socket, there: Callable[[bytes], bytes]) -> None:
    with contextlib.suppress(OSError):
        while block := client.recv(1 << 16):
            server.sendall(there(block))
        server.shutdown(socket.SHUT_WR)


@dataclass(frozen=True)
class Answer:
    """Of a server that is none."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""


@dataclass
class Stand:
    """A server that answers as told, and what it was asked."""

    url: str
    asked: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    """(method, path, headers by lower-case name) of each request."""


@contextlib.contextmanager
def stand_in(answers: Callable[[str, str, Mapping[str, str]], Answer]) -> Iterator[Stand]:
    """Serve what a function of method, path and headers says. A Content-Length of its own is sent as it is."""

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            headers = {name.lower(): value for name, value in self.headers.items()}
            self.rfile.read(int(headers.get("content-length", 0)))
            stand.asked.append((self.command, self.path, headers))
            answer = answers(self.command, self.path, headers)
            self.send_response(answer.status)
            for name, value in {"Content-Length": str(len(answer.body)), **answer.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(answer.body)
            self.close_connection = True

        def __getattr__(self, name: str) -> object:
            if name.startswith("do_"):
                return self._answer
            raise AttributeError(name)

        def log_message(self, *_: object) -> None:
            """Nothing is printed."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    stand = Stand(f"http://127.0.0.1:{server.server_address[1]}")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield stand
    finally:
        server.shutdown()
        server.server_close()
