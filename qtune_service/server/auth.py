"""Whose page sent a request: other sites may not use the rights that a browser has here.

A server without tokens trusts whoever reaches it, and any page that is open in a browser of its machine does. So
requests that change something must come from the server's own pages, or from no page at all, and a server on a
loopback address answers to its own names only: a foreign name that is made to lead there (DNS rebinding) would make
the foreign page "the same origin". A bearer token is proof of its own, for no other page can send it.

Sign browsers in: a cookie with a random secret for an API token, which is typed once and kept nowhere.

What the cookie holds is known to the browser alone; the database has its digest (server/jobs/access.py). The CSRF token
is an HMAC under the same secret, so it needs no storage, and nobody who reads the database can compute it.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from qtune_service.server.errors import answer
from qtune_service.server.jobs.access import SessionStore, Token, TokenStore
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


COOKIE = "qtune_session"
CSRF_HEADER = "X-CSRF-Token"


@dataclass(frozen=True, slots=True)
class Session:
    """A browser that is signed in. Requests that change something repeat `csrf_token`, which no other site can read."""

    token: Token
    csrf_token: str

    def has(self, csrf_token: str) -> bool:
        """Return whether a request brings the right CSRF token."""
        return hmac.compare_digest(self.csrf_token.encode(), csrf_token.encode())


@dataclass(frozen=True, slots=True)
class Sessions:
    """Makes cookies, checks them and ends them."""

    tokens: TokenStore
    max_age_s: int

    @property
    def store(self) -> SessionStore:
        """Sessions in the database that the tokens are in."""
        return SessionStore(self.tokens.engine)

    def sign_in(self, text: str) -> tuple[Session, str] | None:
        """Return a new session of an API token, and its cookie; None where the token is not valid."""
        token = self.tokens.check(text)
        if token is None:
            return None
        cookie = self.store.create(token, self.max_age_s)
        return _session(token, cookie), cookie

    def find(self, cookie: str) -> Session | None:
        """Return the session of a cookie; None where it is forged, ended or too old, or its token is not valid."""
        token = self.store.find(cookie)
        return None if token is None else _session(token, cookie)

    def sign_out(self, cookie: str) -> None:
        """End the session of a cookie on all servers; do nothing where there is none."""
        self.store.end(cookie)


def _session(token: Token, cookie: str) -> Session:
    return Session(token, hmac.digest(cookie.encode(), b"qtune-csrf", hashlib.sha256).hex())
