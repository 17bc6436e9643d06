"""Run the application in uvicorn, with connection limits that uvicorn lacks: idle time, header size, and number.

uvicorn waits without limit for the rest of a request header, or for a client that does not read its response, and
httptools accepts headers of any size. Requests in progress (streams, uploads, downloads) have no limit here. Their
routes have limits. `qtune serve`, tests and benchmarks share this configuration.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import logging
import resource
import time
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from qtune_service.server.settings import Settings

IDLE_S = 15.0
"""Idle limit of a connection without a request in progress: before a request, within a header, after a response."""
STALLED_S = 60.0
"""Idle limit while a response is buffered and the client does not read it."""
HEAD_BYTES = 64 << 10
"""Limit of a request header, of trailers, and of all bytes outside of a body."""

MAX_CONNECTIONS = 4096
DESCRIPTORS_LEFT = 4
"""Inverse share of file descriptors reserved for files, the database and child processes."""
SWEEP_TICKS = 10
"""Ticks between sweeps of the connections; uvicorn ticks ten times a second."""
STARTUP_FAILURE = 3
_log = logging.getLogger(__name__)

Connection: TypeAlias = Any
"""uvicorn's H11Protocol or HttpToolsProtocol, which have no common base class."""


@dataclass(slots=True)
class _Seen:
    """State of a connection at its last change."""

    cycle: object
    buffered_bytes: int
    since_s: float


@dataclass(slots=True)
class Connections:
    """Enforce the limits of a server's connections. Used on the event loop only."""

    max_number: int
    _seen: dict[Connection, _Seen] = field(default_factory=dict)

    def take(self, newcomer: Connection) -> None:
        """Register a new connection. Over the limit, close the longest idle connection, else the new one."""
        self._seen[newcomer] = _Seen(None, 0, time.monotonic())
        if len(newcomer.connections) <= self.max_number:
            return
        idle = [one for one in newcomer.connections if one is not newcomer and _is_idle(one)]
        victim = min(idle, key=self._idle_since_s, default=newcomer)
        newcomer.connections.discard(victim)
        self._seen.pop(victim, None)
        victim.transport.abort()

    def close_overdue(self, connections: set[Connection], now_s: float) -> None:
        """Close connections that are idle for too long. Called every second."""
        seen = self._seen
        self._seen = {}
        for one in list(connections):
            if not _is_idle(one):
                continue
            buffered_bytes = one.transport.get_write_buffer_size()
            before = seen.get(one)
            if before is None or before.cycle is not one.cycle or before.buffered_bytes != buffered_bytes:
                before = _Seen(one.cycle, buffered_bytes, now_s)
            if now_s - before.since_s > (STALLED_S if buffered_bytes else IDLE_S):
                one.transport.abort()
            else:
                self._seen[one] = before

    def _idle_since_s(self, connection: Connection) -> float:
        seen = self._seen.get(connection)
        return time.monotonic() if seen is None or seen.cycle is not connection.cycle else seen.since_s


def _is_idle(connection: Connection) -> bool:
    """Return whether no request is in progress. A connection has a cycle after its first header."""
    return connection.cycle is None or connection.cycle.response_complete


def protocols(connections: Connections) -> dict[str, type[asyncio.Protocol]]:
    """Return uvicorn's protocols with these limits, the preferred one first."""
    if importlib.util.find_spec("httptools") is None:
        return {"h11": _h11(connections)}
    return {"httptools": _httptools(connections), "h11": _h11(connections)}


def _h11(connections: Connections) -> type[asyncio.Protocol]:
    class LimitedH11(H11Protocol):
        """h11 with registered connections. It limits headers by `h11_max_incomplete_event_size`."""

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            connections.take(self)

    return LimitedH11


def _httptools(connections: Connections) -> type[asyncio.Protocol]:
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

    class LimitedHttpTools(HttpToolsProtocol):
        """httptools that counts the bytes since the last complete header or body part."""

        unparsed_bytes = 0

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            connections.take(self)

        def data_received(self, data: bytes) -> None:
            self.unparsed_bytes += len(data)
            super().data_received(data)
            if self.unparsed_bytes > HEAD_BYTES and not self.transport.is_closing():
                self.send_400_response("The request header is too large.")

        def on_headers_complete(self) -> None:
            self.unparsed_bytes = 0
            super().on_headers_complete()

        def on_body(self, body: bytes) -> None:
            self.unparsed_bytes = 0
            super().on_body(body)

        def on_message_complete(self) -> None:
            self.unparsed_bytes = 0
            super().on_message_complete()

    return LimitedHttpTools


class HttpServer(uvicorn.Server):
    """uvicorn server that closes idle connections."""

    def __init__(self, config: uvicorn.Config, connections: Connections) -> None:
        super().__init__(config)
        self._connections = connections

    async def on_tick(self, counter: int) -> bool:
        """Sweep the connections once a second."""
        if counter % SWEEP_TICKS == 0:
            self._connections.close_overdue(self.server_state.connections, time.monotonic())
        return await super().on_tick(counter)


def make_http_server(
    app: FastAPI, settings: Settings, *, protocol: str | None = None, max_connections: int | None = None, **more: Any
) -> HttpServer:
    """Configure a server that `run()` starts. By default it uses the preferred protocol and most file descriptors.

    `more` is passed to uvicorn.Config.
    """
    connections = Connections(max_connections or _max_connections())
    known = protocols(connections)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        http=known[protocol or next(iter(known))],
        ws="none",
        h11_max_incomplete_event_size=HEAD_BYTES,
        access_log=False,
        log_level="warning",
        server_header=False,
        **more,
    )
    return HttpServer(config, connections)


def serve(app: FastAPI, settings: Settings) -> None:
    """Serve until a signal arrives. Raises SystemExit if the address cannot be used."""
    raise_descriptor_limit()
    server = make_http_server(app, settings)
    with contextlib.suppress(KeyboardInterrupt):
        server.run()
    if not server.started:
        raise SystemExit(STARTUP_FAILURE)


def raise_descriptor_limit() -> None:
    """Raise the soft limit of file descriptors to the hard limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (OSError, ValueError) as error:
            _log.warning("the file descriptor limit stays at %d: %s", soft, error)


def _max_connections() -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return MAX_CONNECTIONS
    return max(1, min(MAX_CONNECTIONS, soft - soft // DESCRIPTORS_LEFT))
