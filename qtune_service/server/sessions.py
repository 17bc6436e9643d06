"""Sign browsers in: a cookie with a random secret for an API token, which is typed once and kept nowhere.

What the cookie holds is known to the browser alone; the database has its digest (server/jobs/sessions.py). The CSRF token is
an HMAC under the same secret, so it needs no storage, and nobody who reads the database can compute it.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass

from qtune_service.server.jobs.access import Token, TokenStore
from qtune_service.server.jobs.sessions import SessionStore

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
