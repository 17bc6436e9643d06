"""The HTTP server that runs the application: uvicorn with the limits of connections.py.

`qtune serve`, tests and benchmarks share its configuration.
"""

from __future__ import annotations

import contextlib
import logging
import resource
import time
from typing import Any

import uvicorn
from fastapi import FastAPI

from qtune_service.server.http_server import HEAD_BYTES, Connections, protocols
from qtune_service.server.settings import Settings

MAX_CONNECTIONS = 4096
DESCRIPTORS_LEFT = 4
"""One in so many descriptors is kept for files, the database and children."""
SWEEP_TICKS = 10
"""Connections are looked at every so many ticks of uvicorn, of which there are ten a second."""
STARTUP_FAILURE = 3
_log = logging.getLogger(__name__)


class HttpServer(uvicorn.Server):
    """uvicorn's server, which closes overdue connections."""

    def __init__(self, config: uvicorn.Config, connections: Connections) -> None:
        super().__init__(config)
        self._connections = connections

    async def on_tick(self, counter: int) -> bool:
        """Look at the connections once a second."""
        if counter % SWEEP_TICKS == 0:
            self._connections.close_overdue(self.server_state.connections, time.monotonic())
        return await super().on_tick(counter)


def make_http_server(
    app: FastAPI, settings: Settings, *, protocol: str | None = None, max_connections: int | None = None, **more: Any
) -> HttpServer:
    """Return a server that `run()` starts. By default it has the preferred protocol, and all descriptors but some.

    `more` goes to uvicorn.Config.
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
    """Serve until a signal comes. Raises SystemExit where the address cannot be used."""
    raise_descriptor_limit()
    server = make_http_server(app, settings)
    with contextlib.suppress(KeyboardInterrupt):
        server.run()
    if not server.started:
        raise SystemExit(STARTUP_FAILURE)


def raise_descriptor_limit() -> None:
    """Allow this process as many descriptors as it may have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (OSError, ValueError) as error:
            _log.warning("the limit of descriptors stays at %d: %s", soft, error)


def _max_connections() -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return MAX_CONNECTIONS
    return max(1, min(MAX_CONNECTIONS, soft - soft // DESCRIPTORS_LEFT))
