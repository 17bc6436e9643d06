"""Every request under an id: in the answer (X-Request-ID), in all that is logged of it, and one line when it ends.

The line has the path without its query, and the caller's name, never a token, cookie or body. What nobody caught
becomes a problem here, inside the other middleware, so that it has the headers of every answer.

A limit for request bodies, which are read into memory: JSON of this service is small. Uploads have their own.

Headers that every answer has: what browsers may do with it. Pure ASGI, so that streams stay streams.

What a route sets itself stays; the report brings its own policy. Answers of the API are not stored by browsers or
proxies, since the next to ask may be somebody else; files say themselves how they are cached.
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

from qtune_service.server.errors import BodyTooLargeError, answer
from qtune_service.server.jobs.ids import new_id

MAX_BYTES = 1 << 20
SESSION, SESSION_BYTES = "/api/v1/session", 4 << 10
"""Open to everybody, and takes a token alone."""
UPLOADS = ("POST", "/api/v1/datasets")
"""Streamed to disk, never held."""


class BodyLimit:
    """Refuses larger ones, whether they say how large they are or not."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer 413."""
        path = scope["path"].rstrip("/") if scope["type"] == "http" else ""
        if scope["type"] != "http" or (scope["method"], path) == UPLOADS:
            await self._app(scope, receive, send)
            return
        max_bytes = SESSION_BYTES if path == SESSION else MAX_BYTES
        told = Headers(scope=scope).get("content-length", "")
        if told.isdecimal() and int(told[:20]) > max_bytes:
            refusal = BodyTooLargeError(max_bytes)
            await answer(413, refusal.code, refusal.detail, refusal.hint)(scope, receive, send)
            return
        await self._app(scope, _counted(receive, max_bytes), send)


def _counted(receive: Receive, max_bytes: int) -> Receive:
    size = 0

    async def counted() -> Message:
        nonlocal size
        message = await receive()
        size += len(message.get("body", b""))
        if size > max_bytes:
            raise BodyTooLargeError(max_bytes)
        return message

    return counted


PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
DATA_POLICY = "default-src 'none'; frame-ancestors 'none'"
"""For what is no page: should a browser take it for one, it can do nothing."""
ALWAYS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class SecurityHeaders:
    """Adds them."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on; add to the head of its answer."""

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                _add(MutableHeaders(scope=message))
            await send(message)

        await self._app(scope, receive, with_headers if scope["type"] == "http" else send)


def _add(headers: MutableHeaders) -> None:
    kind = headers.get("content-type", "").partition(";")[0].strip()
    headers.setdefault("Content-Security-Policy", PAGE_POLICY if kind == "text/html" else DATA_POLICY)
    for name, value in ALWAYS.items():
        headers.setdefault(name, value)
    if "sandbox" not in headers["Content-Security-Policy"]:  # browsers refuse a sandboxed page with an opener policy
        headers.setdefault("Cross-Origin-Opener-Policy", "same-origin")
    if kind in ("application/json", "application/problem+json", "text/plain"):
        headers.setdefault("Cache-Control", "no-store")
    elif kind == "text/html":
        headers.setdefault("Cache-Control", "private, no-cache")


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
