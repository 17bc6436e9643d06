"""ASGI middleware: request ids and access log, body size limits, and security headers.

It is pure ASGI, so that streamed responses stay streams. Every request has an id, in the response (X-Request-ID) and in
all of its log lines. The access log has the path without its query and the caller's name, never a token, cookie or
body. Uncaught errors become a problem here, inside the other middleware, so that the response has all headers.

JSON bodies are read into memory, so their size is limited. Uploads have their own limits. Headers that a route sets are
kept: the report has its own policy, and files their own caching. Responses of the API are not cached, since the next
client may be another user.
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
"""The sign-in route is open to all clients, and its body holds one token."""
UPLOADS = ("POST", "/api/v1/datasets")
"""Uploads are streamed to disk."""


class BodyLimit:
    """Reject larger bodies, with and without Content-Length."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or respond with 413."""
        path = scope["path"].rstrip("/") if scope["type"] == "http" else ""
        if scope["type"] != "http" or (scope["method"], path) == UPLOADS:
            await self._app(scope, receive, send)
            return
        max_bytes = SESSION_BYTES if path == SESSION else MAX_BYTES
        declared = Headers(scope=scope).get("content-length", "")
        if declared.isdecimal() and int(declared[:20]) > max_bytes:
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
"""Policy of responses other than pages: a browser that shows one as a page runs nothing."""
ALWAYS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class SecurityHeaders:
    """Add security headers."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and add headers to its response."""

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
    """A finished request. `seconds`: until the response started, since streams last for hours."""

    method: str
    route: str
    """Template of the route, or `unknown`."""
    status: int
    seconds: float


class Observed:
    """Assign request ids, write the access log, and call `note` for each request."""

    def __init__(self, app: ASGIApp, note: Callable[[Answered], None]) -> None:
        self._app, self._note = app, note

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get(HEADER, "")
        request_id = given if _OWN_ID.fullmatch(given) else new_id()
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
            if status:  # the response has started: break the connection
                raise
            hint = f"The server's log has the details under {request_id}."
            await answer(500, "internal", "the server failed unexpectedly", hint)(scope, receive, noted)
        finally:
            self._note(Answered(scope["method"], _route(scope), status, first))
            _write_line(scope, status, time.perf_counter() - started)


def _route(scope: Scope) -> str:
    return str(getattr(scope.get("route"), "path", "unknown"))


def _path(scope: Scope) -> str:
    """Return the path as it was sent, without the query. It contains no line break."""
    raw: bytes = scope.get("raw_path") or quote(scope["path"]).encode()
    return raw.partition(b"?")[0].decode("ascii", "backslashreplace")[:500]


def _write_line(scope: Scope, status: int, seconds: float) -> None:
    caller = quote(str(scope["state"].get("caller", "-")))
    request = f"{scope['method']} {_path(scope)}"
    _access.info("%s %s %s %d %.0f ms", _client(scope), caller, request, status, seconds * 1e3)


def _client(scope: Scope) -> str:
    """Return the client's IP address, or `-`: behind a proxy it comes from a header, which may hold any text."""
    text, _ = scope.get("client") or ("", 0)
    try:
        return str(ip_address(str(text).partition("%")[0]))
    except ValueError:
        return "-"


class OneLine(logging.Formatter):
    """Format records so that no content can forge a record or control a terminal.

    A message is one line. Lines of a traceback are indented.
    """

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """Format the record without control characters."""
        return _visible(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:  # noqa: N802 - logging's name
        """Format a traceback, indented."""
        lines = super().formatException(ei).split("\n")
        return "\n".join(f"    {_visible(line)}" for line in lines)


def _visible(text: str) -> str:
    """Escape control characters and line separators."""
    if text.isprintable():
        return text
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text)


def write_logs() -> None:
    """Send the service's log to standard error, each line with time and request id."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(OneLine("%(asctime)s %(levelname)s [%(request_id)s] %(message)s"))
    handler.addFilter(_with_id)
    logger = logging.getLogger("qtune_service")
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)


def _with_id(record: logging.LogRecord) -> bool:
    record.request_id = _request_id.get()
    return True
