"""Limits for connections, which uvicorn does not have: idle ones, endless heads, and too many of them.

uvicorn waits for ever for the rest of a request's head, or for a client that does not read its answer; httptools takes
heads of any size (h11 does not). Requests in progress (streams, uploads, downloads) have no limit here; routes have
their own.
"""

from __future__ import annotations

import asyncio
import importlib.util
import time
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from uvicorn.protocols.http.h11_impl import H11Protocol

IDLE_S = 15.0
"""How long a connection may be without a request in progress: before its first one, within a head, after an answer."""
STALLED_S = 60.0
"""The same where an answer is not sent off yet, and its client reads nothing of it."""
HEAD_BYTES = 64 << 10
"""Size of a request's head; also of trailers, and of all else that is neither head nor body."""

Connection: TypeAlias = Any
"""A protocol of uvicorn: H11Protocol or HttpToolsProtocol, which have no common base."""


@dataclass(slots=True)
class _Seen:
    """A connection as it was when it last changed."""

    cycle: object
    buffered_bytes: int
    since_s: float


@dataclass(slots=True)
class Connections:
    """Watches the connections of a server. It lives in the server's event loop."""

    max_number: int
    _seen: dict[Connection, _Seen] = field(default_factory=dict)

    def take(self, newcomer: Connection) -> None:
        """Note a new connection. Where there are too many, close the one that has been idle for longest, or it."""
        self._seen[newcomer] = _Seen(None, 0, time.monotonic())
        if len(newcomer.connections) <= self.max_number:
            return
        idle = [one for one in newcomer.connections if one is not newcomer and _is_idle(one)]
        victim = min(idle, key=self._idle_since_s, default=newcomer)
        newcomer.connections.discard(victim)
        self._seen.pop(victim, None)
        victim.transport.abort()

    def close_overdue(self, connections: set[Connection], now_s: float) -> None:
        """Close connections on which nothing has happened for too long. Called every second."""
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
    """Return whether no request is in progress. A connection has a cycle once the first head was read."""
    return connection.cycle is None or connection.cycle.response_complete


def protocols(connections: Connections) -> dict[str, type[asyncio.Protocol]]:
    """Return uvicorn's protocols with these limits, the preferred one first."""
    if importlib.util.find_spec("httptools") is None:
        return {"h11": _h11(connections)}
    return {"httptools": _httptools(connections), "h11": _h11(connections)}


def _h11(connections: Connections) -> type[asyncio.Protocol]:
    class LimitedH11(H11Protocol):
        """h11 limits heads itself: `h11_max_incomplete_event_size`."""

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            connections.take(self)

    return LimitedH11


def _httptools(connections: Connections) -> type[asyncio.Protocol]:
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

    class LimitedHttpTools(HttpToolsProtocol):
        """Counts what was received since the parser last completed a head, or a part of a body."""

        unparsed_bytes = 0

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            connections.take(self)

        def data_received(self, data: bytes) -> None:
            self.unparsed_bytes += len(data)
            super().data_received(data)
            if self.unparsed_bytes > HEAD_BYTES and not self.transport.is_closing():
                self.send_400_response("The head of the request is too large.")

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
