"""Authenticate browsers: origin checks, session cookies, and CSRF tokens.

A server without tokens trusts every client that reaches it, and that includes pages of other sites in a local browser.
So requests that change data must come from the server's own pages or from a client without a page. A server on a
loopback address accepts its own host names only, because DNS rebinding would make a foreign page "the same origin". A
bearer token needs no origin check, since no other page can send it.

Signing in exchanges an API token for a cookie with a random secret. The database stores only the digest of the secret
(server/jobs/access.py). The CSRF token is an HMAC under the same secret, so it needs no storage.
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
COOKIE = "qtune_session"
CSRF_HEADER = "X-CSRF-Token"
DEFAULT_PORTS = {"http": 80, "https": 443, "ws": 80, "wss": 443}


class OwnOrigin:
    """ASGI middleware that rejects requests from pages of other sites."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        is_open_here = settings.is_local and not settings.needs_tokens
        self._names = LOOPBACK_NAMES | {settings.host} if is_open_here else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or respond with 403."""
        if scope["type"] != "http" or (refusal := self._refusal(scope)) is None:
            await self._app(scope, receive, send)
            return
        hint = "Open the server's own address. Behind a proxy, set QTUNE_REQUIRE_TOKENS=true and forward Host."
        await answer(403, "foreign_origin", refusal, hint)(scope, receive, send)

    def _refusal(self, scope: Scope) -> str | None:
        headers = Headers(scope=scope)
        if self._names is not None and _host(headers.get("host", ""))[0] not in self._names:
            return f"Host header {headers.get('host', '')[:100]!r} is not allowed"
        if scope["method"] in SAFE or headers.get("authorization", "").lower().startswith("bearer "):
            return None
        return None if _is_own(headers, scope["scheme"]) else "the request was sent by a page of another site"


def _is_own(headers: Headers, scheme: str) -> bool:
    """Check Sec-Fetch-Site, or Origin where it is missing (plain HTTP). Pages cannot forge these headers."""
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    if site is not None:
        return site in ("same-origin", "none")
    if origin is None:
        return True  # not a browser
    sent_by, separator, netloc = origin.partition("://")
    return bool(separator) and _host(netloc, sent_by) == _host(headers.get("host", ""), scheme)


def _host(netloc: str, scheme: str = "http") -> tuple[str | None, int | None]:
    """Return host name and port."""
    try:
        parts = urlsplit(f"//{netloc}")
        return parts.hostname, parts.port or DEFAULT_PORTS.get(scheme)
    except ValueError:
        return None, None


@dataclass(frozen=True, slots=True)
class Session:
    """Session of a signed-in browser. Requests that change data must send `csrf_token`."""

    token: Token
    csrf_token: str

    def has(self, csrf_token: str) -> bool:
        """Return whether the CSRF token of a request is correct."""
        return hmac.compare_digest(self.csrf_token.encode(), csrf_token.encode())


@dataclass(frozen=True, slots=True)
class Sessions:
    """Create, check and end sessions."""

    tokens: TokenStore
    max_age_s: int

    @property
    def store(self) -> SessionStore:
        """Return the session store in the database of the tokens."""
        return SessionStore(self.tokens.engine)

    def sign_in(self, text: str) -> tuple[Session, str] | None:
        """Create a session for an API token. Return it and its cookie, or None if the token is invalid."""
        token = self.tokens.check(text)
        if token is None:
            return None
        cookie = self.store.create(token, self.max_age_s)
        return _session(token, cookie), cookie

    def find(self, cookie: str) -> Session | None:
        """Return the session of a cookie; None if it is forged, ended or expired, or its token is invalid."""
        token = self.store.find(cookie)
        return None if token is None else _session(token, cookie)

    def sign_out(self, cookie: str) -> None:
        """End the session of a cookie on all servers, if there is one."""
        self.store.end(cookie)


def _session(token: Token, cookie: str) -> Session:
    return Session(token, hmac.digest(cookie.encode(), b"qtune-csrf", hashlib.sha256).hex())
