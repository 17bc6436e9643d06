"""Every request under an id: in the answer (X-Request-ID), in all that is logged of it, and one line when it ends.

The line has the path without its query, and the caller's name, never a token, cookie or body. What nobody caught
becomes a problem here, inside the other middleware, so that it has the headers of every answer.
"""

from __future__ import annotations

import logging
import re
import sys
import time
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any
from urllib.parse import quote

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from qtune_service.server.errors import answer
from qtune_service.server.jobs.ids import new_id

HEADER = "X-Request-ID"
_OWN_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_request_id: ContextVar[str] = ContextVar("request_id", default="-")
_access = logging.getLogger("qtune_service.access")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Answered:
    """A request that was answered. `seconds`: until the answer began, for some go on for hours."""

    method: str
    route: str
    """Template of the route, or `unknown`."""
    status: int
    seconds: float


class Observed:
    """Numbers requests, writes them down, and tells `note` of each."""

    def __init__(self, app: ASGIApp, note: Callable[[Answered], None]) -> None:
        self._app, self._note = app, note

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        asked = Headers(scope=scope).get(HEADER, "")
        request_id = asked if _OWN_ID.fullmatch(asked) else new_id()
        _request_id.set(request_id)
        scope.setdefault("state", {})
        started, status, first = time.perf_counter(), 0, 0.0

        async def noted(message: Message) -> None:
            nonlocal status, first
            if message["type"] == "http.response.start":
                status, first = message["status"], time.perf_counter() - started
                MutableHeaders(scope=message)[HEADER] = request_id
            await send(message)

        try:
            await self._app(scope, receive, noted)
        except Exception:
            _log.exception("%s %s", scope["method"], _path(scope))
            if status:  # too late to say it: the connection breaks
                raise
            hint = f"Its log says what, under {request_id}."
            await answer(500, "internal", "something went wrong in the server", hint)(scope, receive, noted)
        finally:
            self._note(Answered(scope["method"], _route(scope), status, first))
            _write_line(scope, status, time.perf_counter() - started)


def _route(scope: Scope) -> str:
    return str(getattr(scope.get("route"), "path", "unknown"))


def _path(scope: Scope) -> str:
    """As it was sent, so that no line break gets into the log; without the query."""
    raw: bytes = scope.get("raw_path") or quote(scope["path"]).encode()
    return raw.partition(b"?")[0].decode("ascii", "backslashreplace")[:500]


def _write_line(scope: Scope, status: int, seconds: float) -> None:
    who = quote(str(scope["state"].get("caller", "-")))
    asked = f"{scope['method']} {_path(scope)}"
    _access.info("%s %s %s %d %.0f ms", _client(scope), who, asked, status, seconds * 1e3)


def _client(scope: Scope) -> str:
    """Return the client's IP address, or `-`: behind a proxy it is what a header says, which may be anything."""
    text, _ = scope.get("client") or ("", 0)
    try:
        return str(ip_address(str(text).partition("%")[0]))
    except ValueError:
        return "-"


class OneLine(logging.Formatter):
    """Formats a record so that nothing in it looks like another record, or controls a terminal.

    A message is one line; lines of a traceback are indented.
    """

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """Return the record's line without control characters."""
        return _visible(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:  # noqa: N802 - logging's name
        """Return a traceback, indented."""
        lines = super().formatException(ei).split("\n")
        return "\n".join(f"    {_visible(line)}" for line in lines)


def _visible(text: str) -> str:
    """Return a text with control characters and line separators as escapes."""
    if text.isprintable():
        return text
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text)


def write_logs() -> None:
    """Send the service's log to standard error, each line with its time and request."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(OneLine("%(asctime)s %(levelname)s [%(request_id)s] %(message)s"))
    handler.addFilter(_with_id)
    logger = logging.getLogger("qtune_service")
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)


def _with_id(record: logging.LogRecord) -> bool:
    record.request_id = _request_id.get()
    return True
