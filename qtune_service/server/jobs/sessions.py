"""Sessions of browsers, stored by digest: whoever reads the database cannot make a cookie from what it holds.

A session is 256 random bits that its browser alone has. The database has their SHA-256, the API token that was used to
sign in, and when the session ends. So every server on the database knows every session, signing out ends a session
everywhere, and so does revoking its token, or its end.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass

from sqlalchemy import Connection, Engine, delete, select

from qtune_service.server.jobs.access import Token, TokenStore, token_of
from qtune_service.server.jobs.database import reading, writing
from qtune_service.server.jobs.store import now_us
from qtune_service.server.jobs.tables import sessions, tokens

SECRET_CHARS = 43
"""Of 32 bytes in URL-safe base64."""
MAX_PER_TOKEN = 20
"""Sessions of one token at a time; signing in once more ends the oldest."""


@dataclass(frozen=True, slots=True)
class SessionStore:
    """Sessions in a database."""

    engine: Engine

    def create(self, token: Token, seconds: int) -> str:
        """Store a new session of a token; return its secret. Sessions that have expired are removed."""
        secret, now = secrets.token_urlsafe(32), now_us()
        ends = now + seconds * 1_000_000
        row = {"digest": _digest(secret), "token_id": token.id, "created_at": now, "expires_at": ends}
        with writing(self.engine) as connection:
            connection.execute(delete(sessions).where(sessions.c.expires_at <= now))
            connection.execute(sessions.insert().values(row))
            _end_oldest(connection, token.id)
        return secret

    def find(self, secret: str) -> Token | None:
        """Return the token of a session, or None where the session or its token is not valid now. One query."""
        if len(secret) != SECRET_CHARS or not secret.isascii():  # whatever else was sent never reaches the database
            return None
        wanted = (
            select(tokens)
            .join(sessions, sessions.c.token_id == tokens.c.id)
            .where(sessions.c.digest == _digest(secret), sessions.c.expires_at > now_us())
        )
        with reading(self.engine) as connection:
            row = connection.execute(wanted).one_or_none()
        if row is None or not (token := token_of(row)).is_valid:
            return None
        TokenStore(self.engine).note_use(row)
        return token

    def end(self, secret: str) -> None:
        """Remove a session; do nothing where there is none."""
        with writing(self.engine) as connection:
            connection.execute(delete(sessions).where(sessions.c.digest == _digest(secret)))


def _end_oldest(connection: Connection, token_id: str) -> None:
    newest = (sessions.c.created_at.desc(), sessions.c.digest)
    all_of_it = select(sessions.c.digest).where(sessions.c.token_id == token_id).order_by(*newest)
    if extra := connection.execute(all_of_it.offset(MAX_PER_TOKEN)).scalars().all():
        connection.execute(delete(sessions).where(sessions.c.digest.in_(extra)))


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode(errors="replace")).hexdigest()
