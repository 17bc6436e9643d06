"""Whose page sent a request: other sites may not use the rights that a browser has here.

A server without tokens trusts whoever reaches it, and any page that is open in a browser of its machine does. So
requests that change something must come from the server's own pages, or from no page at all, and a server on a
loopback address answers to its own names only: a foreign name that is made to lead there (DNS rebinding) would make
the foreign page "the same origin". A bearer token is proof of its own, for no other page can send it.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from qtune_service.server.errors import answer
from qtune_service.server.settings import Settings

SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
LOOPBACK_NAMES = frozenset({"127.0.0.1", "localhost", "::1"})
DEFAULT_PORTS = {"http": 80, "https": 443, "ws": 80, "wss": 443}


class OwnOrigin:
    """Refuses what other sites' pages send."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        is_open_here = settings.is_local and not settings.needs_tokens
        self._names = LOOPBACK_NAMES | {settings.host} if is_open_here else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer 403."""
        if scope["type"] != "http" or (refusal := self._refusal(scope)) is None:
            await self._app(scope, receive, send)
            return
        hint = "Open the server's own address. Behind a proxy: QTUNE_REQUIRE_TOKENS=true, and pass Host on."
        await answer(403, "foreign_origin", refusal, hint)(scope, receive, send)

    def _refusal(self, scope: Scope) -> str | None:
        headers = Headers(scope=scope)
        if self._names is not None and _host(headers.get("host", ""))[0] not in self._names:
            return f"this server has not the name {headers.get('host', '')[:100]!r}"
        if scope["method"] in SAFE or headers.get("authorization", "").lower().startswith("bearer "):
            return None
        return None if _is_own(headers, scope["scheme"]) else "the request comes from a page of another site"


def _is_own(headers: Headers, scheme: str) -> bool:
    """By what browsers say and pages cannot change: Sec-Fetch-Site, and Origin where that is missing (plain HTTP)."""
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    if site is not None:
        return site in ("same-origin", "none")
    if origin is None:
        return True  # no browser
    sent_by, separator, netloc = origin.partition("://")
    return bool(separator) and _host(netloc, sent_by) == _host(headers.get("host", ""), scheme)


def _host(netloc: str, scheme: str = "http") -> tuple[str | None, int | None]:
    """Name and port."""
    try:
        parts = urlsplit(f"//{netloc}")
        return parts.hostname, parts.port or DEFAULT_PORTS.get(scheme)
    except ValueError:
        return None, None
