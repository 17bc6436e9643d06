"""Sessions of browsers: a signed cookie that names an API token; the token itself is typed once and kept nowhere.

The key that signs is made from the digest of the token's secret, which only the database has. So there is no key to
make, share or lose: any server on the database can check a session, each token has a key of its own, and a token that
was revoked or has expired ends its sessions with the next request. Who can read the database can sign sessions.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass

from itsdangerous import BadSignature, Signer, TimestampSigner

from qtune_service.jobs.access import Token, TokenStore

COOKIE = "qtune_session"
CSRF_HEADER = "X-CSRF-Token"


@dataclass(frozen=True, slots=True)
class Session:
    """Somebody who is signed in. Requests that change something repeat `csrf_token`, which other sites cannot read."""

    token: Token
    csrf_token: str

    def has(self, csrf_token: str) -> bool:
        """Whether a request brings the right one."""
        return hmac.compare_digest(self.csrf_token.encode(), csrf_token.encode())


@dataclass(frozen=True, slots=True)
class Sessions:
    """Makes cookies and checks them."""

    tokens: TokenStore
    max_age_s: int

    def sign_in(self, text: str) -> tuple[Session, str] | None:
        """The session of an API token, and its cookie; None where the token is not valid."""
        token = self.tokens.check(text)
        found = None if token is None else self.tokens.find_valid(token.id)
        if found is None:
            return None
        cookie = _signer(found[1]).sign(found[0].id).decode()
        return _session(*found, cookie), cookie

    def find(self, cookie: str) -> Session | None:
        """The session of a cookie; None where it is forged or too old, or its token is not valid any more."""
        found = self.tokens.find_valid(cookie.partition(".")[0])
        if found is None:
            return None
        try:
            _signer(found[1]).unsign(cookie, max_age=self.max_age_s)
        except BadSignature:  # also one that has expired
            return None
        return _session(*found, cookie)


def _signer(digest: str) -> TimestampSigner:
    return TimestampSigner(digest, salt="qtune-session", key_derivation="hmac", digest_method=hashlib.sha256)


def _session(token: Token, digest: str, cookie: str) -> Session:
    signer = Signer(digest, salt="qtune-csrf", key_derivation="hmac", digest_method=hashlib.sha256)
    return Session(token, signer.get_signature(cookie).decode())
